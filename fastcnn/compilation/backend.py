"""torch.compile(model, backend="fastcnn"): inference through a compiled network, its weights frozen.

torch finds `fastcnn` by the entry point in pyproject.toml.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._dynamo.source import GlobalSource, LocalSource

from fastcnn.compilation.module import CompiledModule, compile_checked
from fastcnn.compilation.spec import DTYPE


def fastcnn(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compiles a graph that torch.compile has traced, as fastcnn.compile does a model.

    Parameters and buffers are frozen as they are at the first call with them, each module's apart: compile again
    (torch.compiler.reset) to take what was written to them since.

    Args:
        graph: the graph, of a model in evaluation mode.
        example_inputs: what it is called with, parameters and buffers among it.

    Returns:
        A function of the same arguments.

    Raises:
        RuntimeError: gradients are required, or autocast is on; or fastcnn.compile's errors. torch.compile wraps them.
    """
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    if torch.is_grad_enabled() and any(isinstance(e, Tensor) and e.requires_grad for e in example_inputs):
        raise RuntimeError(
            "fastcnn.compile: the backend is for inference, and has no gradients; call the model under "
            "torch.no_grad() or torch.inference_mode()"
        )
    if torch.is_autocast_enabled("cpu"):
        raise RuntimeError(f"fastcnn.compile: the backend computes in {DTYPE}; call the model without torch.autocast")
    if any(_is_training(node) for node in graph.graph.nodes):
        raise RuntimeError("fastcnn.compile: expected a model in evaluation mode, but a dropout is in training mode")
    networks = _Networks(graph, _Arguments.of(placeholders, example_inputs))
    with torch._guards.tracing(None):  # a trace of its own, whose guards are not those of the one that is under way
        networks.find(example_inputs)
    return networks


_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)


def _is_training(node: fx.Node) -> bool:
    return node.target in _DROPOUTS and bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True))


@dataclass(frozen=True)
class _Arguments:
    """What the arguments of a graph are, by place.

    Attributes:
        count: of all.
        frozen: parameters, buffers, and what closures, globals and other attributes of modules hold.
        passed: the other tensors, the inputs of the network.
        held: those of `frozen` that are neither parameters nor buffers, so that a write to them is to be seen.
        sizes: which input's which size a number is.
    """

    count: int
    frozen: list[int]
    passed: list[int]
    held: set[int]
    sizes: dict[int, tuple[int, int]]

    @staticmethod
    def of(placeholders: Sequence[fx.Node], values: Sequence[Any]) -> _Arguments:
        """Those of a graph that is called with `values`."""
        given = list(enumerate(zip(placeholders, values, strict=True)))
        tensors = [(i, node, value) for i, (node, value) in given if isinstance(value, Tensor)]
        owned = [i for i, node, value in tensors if _belongs_to_module(node, value)]
        held = [i for i, node, value in tensors if i not in owned and _is_held(node, value)]
        frozen = sorted(owned + held)
        passed = [i for i, _, _ in tensors if i not in frozen]
        if not passed:  # what a module keeps of the part of a broken graph before may be all
            passed = [i for i, node, _ in tensors if i in held and _is_of_module(node)]
            held, frozen = [i for i in held if i not in passed], [i for i in frozen if i not in passed]
        if not passed:
            raise RuntimeError("fastcnn.compile: expected a graph with a tensor as input")
        examples = [node.meta["example_value"] if i in passed else None for i, (node, _) in given]
        numbers = [i for i, (_, value) in given if not isinstance(value, Tensor)]
        sizes = {i: _dimension(str(placeholders[i].meta["example_value"]), values[i], examples) for i in numbers}
        return _Arguments(len(given), frozen, passed, set(held), sizes)


def _dimension(symbol: str, value: Any, examples: Sequence[Any]) -> tuple[int, int]:
    """Which tensor's which size a symbol is."""
    for index, example in enumerate(examples):
        for dim, size in enumerate(() if example is None else example.shape):
            if str(size) == symbol:
                if dim > 0:
                    raise RuntimeError(
                        f"fastcnn.compile: expected sizes that stay, the batch apart, but size {dim} of an input "
                        "changes from call to call; mark it with torch._dynamo.mark_static"
                    )
                return index, dim
    raise RuntimeError(f"fastcnn.compile: expected tensors as inputs, but got the number {value}")


@dataclass(frozen=True)
class _Network:
    """A network and what it was made from.

    Attributes:
        run: the network.
        passed: which arguments it takes.
        frozen: the tensors that it holds copies of, and the versions of those whose writes are to be seen, else -1.
    """

    run: CompiledModule
    passed: list[int]
    frozen: list[tuple[weakref.ref[Tensor], int]]

    def is_of(self, inputs: Sequence[Any], arguments: _Arguments) -> bool:
        """Whether it is the one for these inputs."""
        return all(
            reference() is inputs[index] and version == _version(inputs[index], index in arguments.held)
            for (reference, version), index in zip(self.frozen, arguments.frozen, strict=True)
        )


def _version(tensor: Tensor, is_held: bool) -> int:
    """How often a tensor has been written to, of those where that counts."""
    return tensor._version if is_held and not tensor.is_inference() else -1


class _Networks:
    """A graph as a function, with a network for each set of frozen tensors that it is called with.

    torch.compile calls one graph for all modules of the same code and sizes, each with its own parameters. What
    closures, globals and attributes hold may also be one call's result, which the next part of a broken graph reads:
    where it is another one in a later call and has the batch's size, it is an input from there on.
    """

    def __init__(self, graph: fx.GraphModule, arguments: _Arguments) -> None:
        self.graph, self.arguments = graph, arguments
        self.made: dict[tuple[int, ...], _Network] = {}
        self.lock = threading.Lock()

    def __call__(self, *inputs: Any) -> Any:
        network = self.find(inputs)
        return network.run(*[inputs[index].detach() for index in network.passed])

    def find(self, inputs: Sequence[Any]) -> _Network:
        """The network of the frozen tensors among `inputs`, as they were at the first call with them."""
        with self.lock:
            known = self.made.get(self._key(inputs))
            if known is None or not known.is_of(inputs, self.arguments):
                self._pass_what_changes(inputs)
                alive = {k: n for k, n in self.made.items() if all(t() is not None for t, _ in n.frozen)}
                known = self._make(inputs)
                self.made = {**alive, self._key(inputs): known}
            return known

    def _key(self, inputs: Sequence[Any]) -> tuple[int, ...]:
        return tuple(id(inputs[index]) for index in self.arguments.frozen)

    def _pass_what_changes(self, inputs: Sequence[Any]) -> None:
        given = self.arguments
        batch = inputs[given.passed[0]].shape[:1]
        first = next(iter(self.made.values()), None)
        if first is None:
            return
        changed = {
            index
            for (reference, version), index in zip(first.frozen, given.frozen, strict=True)
            if index in given.held and (reference() is not inputs[index] or version != _version(inputs[index], True))
        }
        changed = {index for index in changed if inputs[index].shape[:1] == batch != ()}
        if changed:
            frozen = [index for index in given.frozen if index not in changed]
            passed = sorted({*given.passed, *changed})
            self.arguments = replace(given, frozen=frozen, passed=passed, held=given.held - changed)
            self.made = {}

    def _make(self, inputs: Sequence[Any]) -> _Network:
        given = self.arguments
        frozen = _Frozen(self.graph, given, inputs).eval()
        examples = [inputs[index].detach() for index in given.passed]
        network = compile_checked(frozen, examples, dynamic=bool(given.sizes))
        tensors = [(weakref.ref(inputs[index]), _version(inputs[index], index in given.held)) for index in given.frozen]
        return _Network(network, given.passed, tensors)


class _Frozen(nn.Module):
    """The graph as a module of its own tensors; its forward takes what is neither parameter nor buffer nor a size."""

    def __init__(self, graph: fx.GraphModule, arguments: _Arguments, values: Sequence[Any]) -> None:
        super().__init__()
        self.graph, self.arguments = graph, arguments
        for index in arguments.frozen:
            self.register_buffer(f"tensor_{index}", values[index].detach())
        (outputs,) = next(node for node in graph.graph.nodes if node.op == "output").args
        self.by_channels = [_is_by_channels(output) for output in outputs]

    def forward(self, *inputs: Tensor) -> Any:
        """The graph's outputs."""
        values: list[Any] = [None] * self.arguments.count
        for index, value in zip(self.arguments.passed, inputs, strict=True):
            values[index] = value
        for index in self.arguments.frozen:
            values[index] = getattr(self, f"tensor_{index}")
        for index, (tensor, dim) in self.arguments.sizes.items():
            values[index] = values[tensor].shape[dim]
        return [
            out.clone(memory_format=torch.contiguous_format) if by_channels else out
            for out, by_channels in zip(self.graph(*values), self.by_channels, strict=True)
        ]


def _is_by_channels(output: Any) -> bool:
    """Whether eager execution returns an image NCHW, or what lies as one, as what comes after the graph may rely on."""
    example = output.meta.get("example_value") if isinstance(output, fx.Node) else None
    if not isinstance(example, Tensor) or example.dim() < 3 or not example.is_contiguous():
        return False
    return example.dim() != 4 or not example.is_contiguous(memory_format=torch.channels_last)


def _belongs_to_module(node: fx.Node, value: Tensor) -> bool:
    source = _source(node)
    if isinstance(source, LocalSource) and source.is_input:  # a parameter as an argument is the caller's
        return False
    return isinstance(value, nn.Parameter) or (_is_of_module(node) and "._buffers[" in source.name)


def _is_of_module(node: fx.Node) -> bool:
    """Whether it is an attribute of a module."""
    source = _source(node)
    return source is not None and "NN_MODULE" in source.guard_source.name


def _is_held(node: fx.Node, value: Tensor) -> bool:
    """Whether a closure, a global or a module holds it, or it is a parameter, and writes to it are counted."""
    if _is_of_module(node):
        return True
    source = _source(node)
    while hasattr(source, "base"):
        source = source.base
    held = isinstance(source, GlobalSource) or (isinstance(source, LocalSource) and not source.is_input)
    return (held or isinstance(value, nn.Parameter)) and not value.is_inference()


def _source(node: fx.Node) -> Any:
    """Where torch.compile has found an argument, None where it does not tell."""
    return getattr(node.meta.get("grapharg"), "source", None)
