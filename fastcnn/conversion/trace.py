"""Traces a module's own forward, with the modules that it calls as they are, and notes all that the trace depends on.

torch.fx runs the forward once with stand-ins for its arguments. Whatever the forward reads elsewhere becomes a constant
of the trace: here that is either noted, to be checked before each run (recipe.Guard), or refuses the trace.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import BuiltinFunctionType
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute

from fastcnn.conversion.recipe import Guard
from fastcnn.conversion.watch import DATA, Notes, is_value, module_of, watched

# Whose code handles stand-ins as such: that of torch.fx, and here.
_TRACING = ("torch.fx", "torch.utils._pytree", "fastcnn.conversion.")


class UntraceableError(Exception):
    """Why a forward cannot be traced."""


@dataclass
class Trace:
    """The graph of a forward, the same in training and in evaluation, and what it depends on."""

    graph: fx.Graph
    guards: tuple[Guard, ...]


class _StandIn(fx.Proxy):
    """A stand-in that notices when it is asked what it is: isinstance asks by __class__, hasattr by __getattr__."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The type that the stand-in stands for, to all but torch.fx itself."""
        asking = sys._getframe(1)
        by_torch = module_of(asking).partition(".")[0] == "torch"
        outer = asking.f_back if module_of(asking) == "torch.nn.parameter" else asking  # isinstance of a Parameter
        if module_of(outer).startswith(_TRACING):
            return type(self)
        tracer: Any = self.tracer
        kind = self._stands_for()
        if kind is None:
            tracer.notes.refuse("asks for the type of what it computed")
            return Tensor
        if by_torch:  # torch.is_tensor, nn.Parameter and others, which may answer what no type of an argument tells
            tracer.notes.refuse("has torch ask for the type of an argument")
        tracer.notes.asked.add(self.node.target)
        return kind

    def __getattr__(self, name: str) -> Any:
        tracer: Any = self.tracer
        kind = self._stands_for()
        if tracer.notes.asking:
            tracer.notes.refuse(f"asks a value whether it has {name}")
        if kind is not None and not hasattr(kind, name):
            tracer.notes.refuse(f"reads {name} of an argument, which a {kind.__name__} lacks")
            raise AttributeError(f"'{kind.__name__}' object has no attribute '{name}'")
        return _Attribute(self, name)

    def _stands_for(self) -> type | None:
        """The type of the argument that it stands for; None for what was computed."""
        tracer: Any = self.tracer
        kind: type | None = tracer.arguments[self.node.target] if self.node.op == "placeholder" else None
        return kind


class _Attribute(Attribute, _StandIn):
    """A stand-in for a stand-in's attribute."""

    def _stands_for(self) -> type | None:
        return None  # without a look at its node, which is made only where the attribute is not called


class _Tracer(fx.Tracer):
    """Traces one module's forward, with arguments of the given types, calling no other module's."""

    proxy_buffer_attributes = True  # or what a forward writes to a buffer would happen here, once

    def __init__(self, arguments: dict[str, type], notes: Notes) -> None:
        super().__init__()
        self.arguments = arguments
        self.notes = notes

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _StandIn(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        on, self.notes.on = self.notes.on, False  # looks the tensor up in all of the root's
        try:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        finally:
            self.notes.on = on

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        def run(*args: Any) -> Any:
            self.notes.on = True
            try:
                return root_fn(*args)
            finally:
                self.notes.on = False

        run.__annotations__ = {}  # the graph would take over what it returns
        return run, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self.arguments)]


class _Probe(nn.Module):
    """Over a class, notes what is read of its instance: see Notes."""

    def __init_subclass__(cls) -> None:
        """Tells the classes under it nothing, which may keep a list of what is made of them."""

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        notes: Notes | None = own.get("_notes")
        if notes is not None and notes.on:
            if name in own:
                _note_read(notes, own["_path"], name, own[name])
            elif not name.startswith("__"):
                _note_class_read(notes, own["_path"], name, type(self))
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        notes, path = vars(self)["_notes"], vars(self)["_path"]
        try:
            value = super().__getattr__(name)
        except AttributeError:
            if notes.on:
                notes.guards[path, name] = Guard(path, name, "absent")
            raise
        if notes.on:
            kind = "none" if value is None else "module" if isinstance(value, nn.Module) else "tensor"
            notes.guards[path, name] = Guard(path, name, kind)
        return value


def _note_read(notes: Notes, path: tuple[str, ...], name: str, value: Any) -> None:
    if name == "training":
        notes.training.add(path)
    elif name == "_modules":
        notes.guards[path, name] = Guard(path, name, "children", tuple(value))
    elif is_value(value):
        notes.guards.setdefault((path, name), Guard(path, name, "value", copy.deepcopy(value)))
    else:
        _refuse(notes, f"reads self.{'.'.join((*path, name))}, a {type(value).__name__}")


def _refuse(notes: Notes, reason: str) -> None:
    """Ends the trace before the forward calls what it has read, which is the module's own."""
    notes.refuse(reason)
    raise UntraceableError(reason)


def _note_class_read(notes: Notes, path: tuple[str, ...], name: str, cls: type) -> None:
    """Notes a plain value of the class; methods, properties and classes are taken to stay."""
    held = [vars(base)[name] for base in cls.__mro__ if name in vars(base)]
    if held and not hasattr(type(held[0]), "__get__") and not isinstance(held[0], type):
        values = (*DATA, BuiltinFunctionType)
        if is_value(held[0], values):
            _note_read(notes, path, name, held[0])
        else:
            _refuse(notes, f"reads self.{'.'.join((*path, name))}, a {type(held[0]).__name__} of the class")


@functools.cache
def _probe_class(kind: Any) -> Any:
    return type(kind.__name__, (_Probe, kind), {"__module__": kind.__module__})


def _probe(
    module: nn.Module, kind: type[nn.Module], notes: Notes, training: bool, path: tuple[str, ...], seen: dict[int, Any]
) -> nn.Module:
    """A copy of a module and of those in it that shares tensors with them and nothing that can be written to."""
    if id(module) in seen:
        return seen[id(module)]  # type: ignore[no-any-return]
    cls: Any = _probe_class(kind)  # type: ignore[arg-type]
    probe: nn.Module = seen.setdefault(id(module), cls.__new__(cls))
    for name, value in vars(module).items():
        if is_value(value):
            value = copy.deepcopy(value)  # what lies in a list of it, too
        elif isinstance(value, (dict, list, set)):
            value = copy.copy(value)
        probe.__dict__[name] = value
    probe.__dict__.update(_notes=notes, _path=path, training=training)
    for name, child in module._modules.items():
        if child is not None:
            probe._modules[name] = _probe(child, type(child), notes, training, (*path, name), seen)
    return probe


def variants(forward: Callable[..., Any]) -> list[dict[str, type]]:
    """The arguments that a forward is traced with: tensors for all that it needs, then for up to two more.

    Raises:
        UntraceableError: it needs arguments by keyword, or none.
    """
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        raise UntraceableError("needs arguments by keyword")
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is p.empty for p in positional)
    counts = range(max(1, needed), min(len(positional), needed + 2) + 1)
    if not counts:
        raise UntraceableError("takes no argument by position")
    return [{p.name: Tensor for p in positional[:count]} for count in counts]


def trace(module: nn.Module, kind: type[nn.Module], arguments: dict[str, type]) -> tuple[Trace, set[str]]:
    """Traces a module's forward, as its class `kind` has it, with arguments of the given types.

    Returns:
        The trace, and the arguments whose type the forward asked for.

    Raises:
        UntraceableError: it does not trace, or not to the same in training and in evaluation.
    """
    train, notes = _trace_in_mode(module, kind, arguments, training=True)
    evaluation, other = _trace_in_mode(module, kind, arguments, training=False)
    guards = {**notes.guards, **other.guards}
    paths = notes.training | other.training
    if len(train.nodes) != len(evaluation.nodes) or len(paths) > 1:
        raise UntraceableError("does not compute the same in training and in evaluation")
    _merge(train, evaluation, next(iter(paths), None))
    return Trace(train, tuple(guards.values())), notes.asked


def _trace_in_mode(
    module: nn.Module, kind: type[nn.Module], arguments: dict[str, type], training: bool
) -> tuple[fx.Graph, Notes]:
    notes = Notes()
    tracer = _Tracer(arguments, notes)
    try:
        probe = _probe(module, kind, notes, training, (), {})
        before = dict(vars(probe))
        with watched(notes):
            graph = tracer.trace(probe)
    except Exception as error:
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise UntraceableError(notes.refusal or f"cannot be traced: {text}") from error
    if vars(probe).keys() != before.keys() or any(vars(probe)[name] is not before[name] for name in before):
        notes.refuse("writes to its module")
    for guard in notes.guards.values():
        if guard.kind in ("value", "children", "global") and not (_holds(guard, module) and _holds(guard, probe)):
            notes.refuse(f"writes to {guard.read}")
    for node in graph.nodes:
        if node.op == "get_attr" and node.target.startswith("_tensor_constant"):
            notes.refuse("makes tensors of its own")
    if notes.refusal is not None:
        raise UntraceableError(notes.refusal)
    return graph, notes


def _holds(guard: Guard, module: nn.Module) -> bool:
    """Whether what was read is the same after the trace; stand-ins in it do not compare."""
    try:
        return guard.holds(module)
    except Exception:
        return False


def _merge(train: fx.Graph, evaluation: fx.Graph, path: tuple[str, ...] | None) -> None:
    """Makes of the trace in training one for both: what is True in training and False in evaluation reads the flag.

    Raises:
        UntraceableError: they differ otherwise.
    """
    differ = UntraceableError("does not compute the same in training and in evaluation")
    same: dict[fx.Node, fx.Node] = {}
    flag: list[fx.Node] = []

    def merge(a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node):
            if same.get(a) is not b:
                raise differ
            return a
        if type(a) is not type(b):
            raise differ
        if isinstance(a, (tuple, list)):
            if len(a) != len(b):
                raise differ
            return type(a)([merge(x, y) for x, y in zip(a, b, strict=True)])
        if isinstance(a, dict):
            if a.keys() != b.keys():
                raise differ
            return {key: merge(a[key], b[key]) for key in a}
        if isinstance(a, slice):
            return slice(merge(a.start, b.start), merge(a.stop, b.stop), merge(a.step, b.step))
        if a is True and b is False and path is not None:
            if not flag:
                with train.inserting_before(next(iter(train.nodes))):
                    flag.append(train.create_node("get_attr", ".".join((*path, "training"))))
            return flag[0]
        if a != b:
            raise differ
        return a

    for left, right in zip(list(train.nodes), evaluation.nodes, strict=True):
        if left.op != right.op or left.target != right.target:
            raise differ
        left.args, left.kwargs = (
            merge(tuple(left.args), tuple(right.args)),
            merge(dict(left.kwargs), dict(right.kwargs)),
        )
        same[left] = right
