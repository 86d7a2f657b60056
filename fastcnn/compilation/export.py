"""The front end: from a module, through torch.export, to graph.Graph.

The batch stays a symbol, so an example of batch 1, which torch.export would take for a constant, is doubled.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from fastcnn.compilation import pure_ops
from fastcnn.compilation.graph import ATEN, RESHAPE, Graph, Input, Node, Value, leaves, map_leaves
from fastcnn.compilation.lowering import LOWERINGS
from fastcnn.compilation.spec import MOST_SIDE, name_of

# Arithmetic with the batch size.
_SYMBOLIC = {operator.mul: "mul", operator.add: "add", operator.sub: "sub", operator.floordiv: "floordiv"}

# Ops whose results depend on strides, which are not the exporter's here; `view` of a channels_last tensor can fail.
_STRIDE_FREE = {
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
    "aten.view_as.default": "aten.reshape_as.default",
}
_ON_STRIDES = ("aten.as_strided.default", "aten.view.dtype", "aten.stride.int", "aten.sym_stride.int")

# Operators of other namespaces may look at memory, and so do these.
_STRIDE_FREE_NAMESPACES = ("aten.", "fastcnn.", "operator.")
_ON_MEMORY = ("aten.view_as_complex.default",)

# Kinds of a trace's results that are what it has written, and to what; by name, as the second is of newer releases.
_WRITES = {"USER_INPUT_MUTATION": "inputs", "PARAMETER_MUTATION": "weights"}

_WEIGHTS = object()  # what a view may lie in that is not a call's

# Elements by which what an operator makes of weights may outgrow them, to be computed once.
_MOST_GROWTH = 64 * 1024

# Ops that copy, and the layout that they give where none is named.
_COPIES = {"aten.clone.default": None, "aten.contiguous.default": torch.contiguous_format}

# Ops that may give a view of what they get though their schema does not say so.
_MAY_VIEW = (
    *("_unsafe_view", "alpha_dropout", "atleast_1d", "atleast_2d", "atleast_3d", "broadcast_tensors", "cartesian_prod"),
    *("dropout", "einsum", "feature_alpha_dropout", "feature_dropout", "meshgrid", "type_as"),
)
# Ops that copy where their result cannot be a view, by strides.
_MAY_COPY = ("flatten", "ravel", "reshape", "reshape_as")

# Ops that make a tensor of their own, so that writing to it is seen by nobody else as long as nobody else reads it.
_FRESH = {
    f"{name}.{overload}"
    for name, overload in [
        *(
            (f"aten.{op}", "default")
            for op in ("conv2d", "linear", "batch_norm", "cat", "relu", "sigmoid", "hardswish")
        ),
        *((f"aten.{op}", "default") for op in ("hardtanh", "silu", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")),
        *((f"fastcnn.{op}", "default") for op in ("conv2d", "concat", "max_pool2d", "avg_pool2d", "batch_norm_infer")),
        ("aten.conv2d", "padding"),
        ("aten.add", "Tensor"),
        ("aten.mul", "Tensor"),
        ("aten.mean", "dim"),
    ]
}


def export(model: nn.Module, examples: Sequence[Tensor], *, dynamic: bool = True) -> Graph:
    """Traces `model` in evaluation mode on tensors like `examples`.

    Args:
        model: a module of float32 parameters on the CPU.
        examples: Tensor[N, ...] for each positional argument of forward.
        dynamic: whether the batch may be another one than the examples'.

    Raises:
        RuntimeError: the model is in training mode, on another device, of another dtype; or it writes to its buffers
            or inputs.
        ValueError: the examples do not share one batch.
        NotImplementedError: an operator or an output that nothing here can stand for.
        torch.export's own errors: forward cannot be traced, or it works for one batch size only.
    """
    check_model(model)
    _check_examples(examples)
    if dynamic:
        examples = [torch.cat([e, e]) if e.shape[0] == 1 else e for e in examples]
        if any(e.shape[0] == 0 for e in examples):
            raise ValueError("fastcnn.compile: expected example inputs of batch 1 or more, but got batch 0")
    # By tensor and not by place, which is another for forward(*args).
    shapes: Any = torch.export.ShapesCollection()
    examples = [e.detach().clone() for e in examples]
    for example in examples if dynamic else ():
        shapes[example] = {0: torch.export.Dim("batch")}
    with torch.no_grad():
        program = torch.export.export(model, tuple(examples), dynamic_shapes=shapes if dynamic else None, strict=False)
        if not _make_functional(program.graph):
            program = program.run_decompositions({})
    _check_pure(program)
    return _Reader(program, examples).read()


def check_model(model: nn.Module) -> None:
    """Raises RuntimeError where a model cannot be compiled as it is."""
    for name, module in model.named_modules():
        if module.training:
            raise RuntimeError(
                "fastcnn.compile: expected a model in evaluation mode, because its weights and statistics are frozen, "
                f"but {f'its module {name!r}' if name else 'it'} is in training mode; call model.eval() first"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "cpu":
            raise RuntimeError(f"fastcnn.compile: expected all tensors on the CPU, but {name} is on {tensor.device}")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise RuntimeError(
                f"fastcnn.compile: expected weights of dtype torch.float32, but {name} is {tensor.dtype}"
            )


def _check_examples(examples: Sequence[Tensor]) -> None:
    for index, example in enumerate(examples):
        if not isinstance(example, Tensor) or example.dim() == 0:
            raise TypeError(
                f"fastcnn.compile: expected example input {index} to be a Tensor[N, ...], but got {example!r}"
            )
    batches = {example.shape[0] for example in examples}
    if len(batches) > 1:
        raise ValueError(f"fastcnn.compile: expected example inputs of one batch size, but got {sorted(batches)}")


def _make_functional(graph: fx.Graph) -> bool:
    """Exchanges in-place ops for the others where nobody else sees the difference; False where somebody might.

    torch's own functionalization knows all cases, and takes longer than everything else here.
    """
    position = {node: index for index, node in enumerate(graph.nodes)}
    changes: list[tuple[fx.Node, Any]] = []
    fresh: set[fx.Node] = set()
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if not node.target._schema.is_mutable:
            if str(node.target) in _FRESH:
                fresh.add(node)
            continue
        written = node.args[0]
        packet, overload = str(node.target).rsplit(".", 1)
        functional = _find(f"{packet.removesuffix('_')}.{overload}")
        if functional is None or not isinstance(written, fx.Node) or written not in fresh:
            return False
        metas = [argument.meta.get("val") for argument in node.all_input_nodes]
        if len({meta.dtype for meta in metas if isinstance(meta, Tensor)}) > 1:  # what is written keeps its own
            return False
        # Earlier readers are done with it, unless they handed on a view of it.
        if any(
            position[user] > position[node] or str(user.target) not in _FRESH
            for user in written.users
            if user is not node
        ):
            return False
        changes.append((node, functional))
        fresh.add(node)
    for node, functional in changes:
        node.target = functional
    return True


def _find(name: str) -> Any:
    """The op called "namespace.op.overload", or None."""
    namespace, op, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), op, None), overload, None)


def _check_pure(program: torch.export.ExportedProgram) -> None:
    for output in program.graph_signature.output_specs:
        if output.kind == OutputKind.BUFFER_MUTATION:
            raise RuntimeError(
                f"fastcnn.compile: expected a model that leaves its buffers alone, but it writes to {output.target!r}; "
                "is a layer of it in training mode?"
            )
        if output.kind.name in _WRITES:
            what = _WRITES[output.kind.name]
            raise RuntimeError(
                f"fastcnn.compile: expected a model that leaves its {what} alone, but it writes to {output.target!r}"
            )
        if output.kind != OutputKind.USER_OUTPUT:
            raise NotImplementedError(f"fastcnn.compile: a result of the kind {output.kind.name}")


class _Reader:
    """Turns an exported program into a Graph."""

    def __init__(self, program: torch.export.ExportedProgram, examples: Sequence[Tensor]) -> None:
        self.program = program
        self.examples = examples
        self.nodes: list[Node] = []
        self.known: dict[fx.Node, Any] = {}  # a Value, a weight, or the list of these that an op returned
        self.inputs: list[Value] = []
        self.signature: list[dict[str, Any]] = []
        self.batch: Any = None
        self.roots: dict[Value, set[Any]] = {}  # of views: the values whose memory they may lie in, or _WEIGHTS
        self.returned: list[tuple[set[Any], set[Any]]] = []  # roots of what is returned, here and in the model
        self.count = 0

    def read(self) -> Graph:
        """The graph."""
        signature = self.program.graph_signature
        kinds = {spec.arg.name: spec for spec in signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, kinds[node.name])
            elif node.op == "get_attr":
                raise NotImplementedError(
                    f"fastcnn.compile: a model with control flow or nested graphs ({node.target})"
                )
            elif node.op == "call_function":
                self._call(node)
        returned = next(node for node in self.program.graph.nodes if node.op == "output").args[0]
        outputs = [self._output(item) for item in returned]
        structure = _structure(self.program.call_spec.out_spec, iter(range(len(outputs))), outputs)
        kept = [value for value in outputs if value is not None]
        batch = self.batch if isinstance(self.batch, int) else None
        return Graph(self.signature, batch, self.inputs, self.nodes, kept, structure)

    def add(self, op: str, inputs: Sequence[Value], output: Value, constants: Any = None, **attributes: Any) -> Value:
        """Appends a step of a plan; lowering.Builder's."""
        self.nodes.append(Node(op, list(inputs), [output], attributes, constants or {}))
        if op == RESHAPE:
            self.roots[output] = self._roots(inputs[0])
        return output

    def intermediate(self, name: str, shape: tuple[int, ...]) -> Value:
        """A value without a name of its own; lowering.Builder's."""
        self.count += 1
        return Value(f"{name}:{self.count}", shape)

    def _placeholder(self, node: fx.Node, spec: Any) -> None:
        program = self.program
        if spec.kind == InputKind.USER_INPUT:
            if not isinstance(node.meta.get("val"), Tensor):
                raise NotImplementedError(f"fastcnn.compile: an argument that is no tensor ({node.name})")
            self.batch = node.meta["val"].shape[0] if self.batch is None else self.batch
            value = Value(node.name, self._shape(node.meta["val"]))
            self.inputs.append(value)
            example = self.examples[len(self.signature)]
            self.signature.append(
                {
                    "name": node.name,
                    "shape": list(example.shape[1:]),
                    "dtype": name_of(example.dtype),
                }
            )
            self.known[node] = value
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            stored = program.state_dict if spec.target in program.state_dict else program.constants
            self.known[node] = stored[spec.target].detach()
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            self.known[node] = program.constants[spec.target].detach()
        else:
            raise NotImplementedError(f"fastcnn.compile: an argument of the kind {spec.kind.name} ({node.name})")

    def _shape(self, meta: Any) -> tuple[int, ...] | None:
        """The sizes of one image where plans can hold such a tensor."""
        if not isinstance(meta, Tensor) or meta.dtype != torch.float32 or meta.dim() not in (2, 4):
            return None
        sizes = tuple(meta.shape[1:])
        if not all(isinstance(size, int) and size > 0 for size in sizes) or any(s > MOST_SIDE for s in sizes[1:]):
            return None
        if str(meta.shape[0]) != str(self.batch):
            return None
        return sizes

    def _call(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, fx.Node) and isinstance(index, int)
            self.known[node] = self.known[source][index]
            return
        name = str(node.target)
        meta = node.meta.get("val")
        many = isinstance(meta, (list, tuple))
        metas: list[Any] = list(meta) if isinstance(meta, (list, tuple)) else [meta]
        output = Value(node.name, self._shape(metas[0]))
        if isinstance(node.target, torch._ops.OpOverload) and name in LOWERINGS and self._only_first(node, many):
            lowered = LOWERINGS[name](self, self._arguments(node), output)
            if lowered is not None:
                self.known[node] = [lowered] if many else lowered
                return
        self._aten(node, name, metas, many)

    @staticmethod
    def _only_first(node: fx.Node, many: bool) -> bool:
        return not many or all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        """All arguments of an op by name, defaults too."""
        assert isinstance(node.target, torch._ops.OpOverload)
        given: dict[str, Any] = {}
        for index, argument in enumerate(node.target._schema.arguments):
            if index < len(node.args):
                value = node.args[index]
            else:
                value = node.kwargs.get(argument.name, argument.default_value)
            given[argument.name] = map_leaves(value, self._known)
        return given

    def _known(self, leaf: Any) -> Any:
        return self.known[leaf] if isinstance(leaf, fx.Node) else leaf

    def _aten(self, node: fx.Node, name: str, metas: Sequence[Any], many: bool) -> None:
        if node.target in _SYMBOLIC:
            name = f"operator.{_SYMBOLIC[node.target]}"
        elif not isinstance(node.target, torch._ops.OpOverload) or name in _ON_STRIDES:
            raise NotImplementedError(f"fastcnn.compile: the operator {name} ({node.name})")
        elif node.target._schema.is_mutable:
            raise NotImplementedError(
                f"fastcnn.compile: the operator {name}, which writes to its arguments ({node.name})"
            )
        elif pure_ops.updates_statistics(name, node.args):
            raise RuntimeError(
                f"fastcnn.compile: expected a model that leaves its buffers alone, but {name} ({node.name}) updates "
                "running statistics"
            )
        constant = _computed(node, self._known, many)
        if constant is not None:
            self.known[node] = constant
            return
        inputs: list[Value] = []
        reads_memory = not name.startswith(_STRIDE_FREE_NAMESPACES) or name in _ON_MEMORY

        def place(leaf: Any) -> Any:
            known = self._known(leaf)
            if not isinstance(known, Value):
                return known
            if reads_memory:
                known = self._as_traced(leaf, known)
            if known not in inputs:
                inputs.append(known)
            return Input(inputs.index(known))

        attributes = {
            "op": _STRIDE_FREE.get(name, name),
            "args": map_leaves(node.args, place),
            "kwargs": map_leaves(dict(node.kwargs), place),
            "many": many,
        }
        outputs = [Value(f"{node.name}.{i}" if many else node.name, self._shape(meta)) for i, meta in enumerate(metas)]
        self.nodes.append(Node(ATEN, inputs, outputs, attributes))
        self._note_views(node, outputs)
        self.known[node] = outputs if many else outputs[0]

    def _as_traced(self, node: fx.Node, value: Value) -> Value:
        """A copy laid out as in the trace, where that was contiguous, for an operator that looks at memory."""
        meta = node.meta.get("val")
        if not isinstance(meta, Tensor) or not meta.is_contiguous():
            return value
        return self._copy(value, f"{node.name}_contiguous", "aten.contiguous.default", {})

    def _copy(self, source: Value | Tensor, name: str, op: str, kwargs: dict[str, Any]) -> Value:
        inputs = [source] if isinstance(source, Value) else []
        copy = Value(name, inputs[0].shape if inputs else None)
        attributes = {"op": op, "args": [Input(0) if inputs else source], "kwargs": kwargs, "many": False}
        self.nodes.append(Node(ATEN, inputs, [copy], attributes))
        return copy

    def _note_views(self, node: fx.Node, outputs: Sequence[Value]) -> None:
        """Notes what the results of an operator may be views of."""
        viewed = node.all_input_nodes if _is_one_of(node, _MAY_VIEW) else _aliased(node)
        roots = {root for leaf in viewed for root in self._roots(self._known(leaf))}
        for output in outputs if roots else ():
            self.roots[output] = roots

    def _roots(self, known: Any) -> set[Any]:
        if isinstance(known, Tensor):
            return {_WEIGHTS}
        return self.roots.get(known, {known}) if isinstance(known, Value) else set()

    def _output(self, item: Any) -> Value | None:
        """A value to return.

        What the caller passed, a weight or a view of one goes back as a copy of it. So does what the model copied where
        that was last or the result would share memory that it does not share there: steps of plans leave copies out.
        """
        if item is None:
            return None
        value = self._known(item)
        if not isinstance(value, (Value, Tensor)):
            raise NotImplementedError(
                f"fastcnn.compile: expected a model that returns tensors, but it returns {value!r}"
            )
        copied, roots, theirs = str(item.target) in _COPIES, self._roots(value), _roots_in_model(item)
        passed = {*self.inputs}, {node for node in theirs if node.op == "placeholder"}
        shares = any(roots & held and not theirs & held_there for held, held_there in [passed, *self.returned])
        is_kept = value in self.inputs or _WEIGHTS in roots
        if isinstance(value, Value) and not (copied or is_kept or shares):
            self.returned.append((roots, theirs))
            return value
        layout = item.kwargs.get("memory_format", _COPIES.get(str(item.target)))
        return self._copy(
            value, f"{item.name}_copy", "aten.clone.default", {} if layout is None else {"memory_format": layout}
        )


def _roots_in_model(node: fx.Node) -> set[Any]:
    """The nodes whose memory a node's result lies in when the model itself runs."""
    if node.target is operator.getitem:
        return _roots_in_model(node.all_input_nodes[0])
    if str(node.target) in _COPIES:
        return {node}
    if _is_one_of(node, _MAY_COPY) and not node.all_input_nodes[0].meta["val"].is_contiguous():
        return {node}
    viewed = [leaf for leaf in _aliased(node) if isinstance(leaf, fx.Node)]
    return {root for leaf in viewed for root in _roots_in_model(leaf)} or {node}


def _is_one_of(node: fx.Node, names: Sequence[str]) -> bool:
    """Whether a node calls one of these operators of torch's, any overload."""
    namespace, _, name = str(node.target).partition(".")
    return namespace == "aten" and name.partition(".")[0] in names


def _aliased(node: fx.Node) -> Iterator[Any]:
    """The arguments that the results of an operator may be views of, as its schema says."""
    if isinstance(node.target, torch._ops.OpOverload):
        for argument, given in zip(node.target._schema.arguments, node.args, strict=False):
            if argument.alias_info is not None:
                yield from leaves(given)


def _computed(node: fx.Node, known: Callable[[Any], Any], many: bool) -> Any:
    """What an operator gives of weights and numbers alone, as a normalised weight is; None where that is no constant.

    What is much larger than what it is made of stays to be computed.
    """
    given = [known(leaf) for leaf in leaves([node.args, dict(node.kwargs)])]
    weights = [value for value in given if isinstance(value, Tensor)]
    if not weights or any(isinstance(value, Value) for value in given):
        return None
    if pure_ops.is_random(str(node.target), node.args, node.kwargs):
        return None
    args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), known)
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    results = list(result) if many else [result]
    if not all(isinstance(one, Tensor) for one in results):
        return None
    if sum(one.numel() for one in results) > _MOST_GROWTH + sum(weight.numel() for weight in weights):
        return None
    return results if many else result


def _structure(spec: pytree.TreeSpec, numbers: Any, outputs: Sequence[Any]) -> Any:
    """The tree with the number of each output as leaf; see spec.Structure."""
    if spec.is_leaf():
        index = next(numbers)
        if outputs[index] is None:
            return None
        return sum(1 for value in outputs[:index] if value is not None)
    children = [_structure(child, numbers, outputs) for child in spec.children()]
    if spec.type in (tuple, list):
        return {spec.type.__name__: children}
    if spec.type in (dict, OrderedDict) and all(isinstance(key, str) for key in spec.context):
        return {spec.type.__name__: dict(zip(spec.context, children, strict=True))}
    raise NotImplementedError(
        f"fastcnn.compile: expected outputs in tuples, lists and dicts, but got {spec.type.__name__}"
    )
