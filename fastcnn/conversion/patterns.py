"""Finds BatchNorm and ReLU, with or without a residual between them, in the graph of a forward, and rewrites it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.graph_module import _format_import_block
from torch.package.importer import sys_importer

from fastcnn.conversion.endings import ELSEWHERE, before_identities, of_value
from fastcnn.conversion.fused import batch_norm_relu, view
from fastcnn.conversion.layers import is_norm_act, original_class

_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}
_ADDITIONS = {
    **dict.fromkeys((operator.add, torch.add, "add", "__add__"), "+"),
    **dict.fromkeys((operator.iadd, "add_", "__iadd__"), "+="),
}
# Layers whose results are channels_last, once they are ours.
IMAGES = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
# What gives a new tensor and leaves its arguments as they are.
_PURE = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.Linear, nn.modules.pooling._MaxPoolNd)
_PURE_AS_VIEWS = (nn.Identity, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd)


@dataclass
class Pattern:
    """A batch norm with the ReLU that takes its output."""

    norm: fx.Node
    between: list[fx.Node]  # calls of nn.Identity between batch norm and addition or ReLU
    relu: fx.Node
    addition: fx.Node | None = None
    residual: fx.Node | None = None
    how: str = "output + residual"

    @property
    def name(self) -> str:
        """What plan and explain call it."""
        return " + ".join(["BatchNorm", *(["residual"] if self.residual is not None else []), "ReLU"])


Module = Callable[[fx.Node], nn.Module | None]


@dataclass(frozen=True)
class Unfusable:
    """A batch norm that seems to have a ReLU after it, by its name from the forward's module, and why they stay two."""

    norm: str
    name: str
    reason: str


def find(graph: fx.Graph, root: nn.Module, is_norm: Callable[[nn.Module], bool]) -> Iterator[Pattern | Unfusable]:
    """The patterns of a forward's graph, those that can be fused and those that cannot."""

    def module(node: fx.Node) -> nn.Module | None:
        return root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def norm_of(node: Any) -> tuple[fx.Node, list[fx.Node]] | None:
        """The call of a batch norm that a value comes from, and the nn.Identity on the way."""
        between: list[fx.Node] = []
        while isinstance(node, fx.Node) and type(module(node)) is nn.Identity and len(node.args) == 1:
            between.insert(0, node)
            node = node.args[0]
        if not isinstance(node, fx.Node):
            return None
        called = module(node)
        return (node, between) if called is not None and is_norm(called) else None

    for relu in graph.nodes:
        if not _is_relu(relu, module):
            continue
        value = relu.args[0]
        found, sides = norm_of(value), _operands(value)
        candidates = [Pattern(*found, relu)] if found is not None else list(_with_residual(sides, value, relu, norm_of))
        reasons = []
        for pattern in candidates:
            reason = _refusal(pattern, graph, module)
            if reason is None:
                yield pattern
                break
            reasons.append(Unfusable(str(pattern.norm.target), pattern.name, reason))
        else:
            yield from (reasons or _endings(value, root))[:1]


def _endings(value: Any, root: nn.Module) -> list[Unfusable]:
    """The batch norms that a ReLU's input comes from in other ways: through modules, or of other classes."""
    value = before_identities(value, root)
    sides = _operands(value)
    pattern = "BatchNorm + residual + ReLU" if sides else "BatchNorm + ReLU"
    found = []
    for side in sides or [value]:
        name = of_value(side, root)
        if name is not None:
            norm = root.get_submodule(name)
            between = "an nn.Identity lies between the sum and the ReLU"
            own = f"{type(norm).__name__} has its own forward" if is_norm_act(original_class(norm)) else between
            found.append(Unfusable(name, pattern, own if _is_called(norm, value.graph, root) else ELSEWHERE))
    return found


def _is_called(module: nn.Module, graph: fx.Graph, root: nn.Module) -> bool:
    return any(n.op == "call_module" and root.get_submodule(str(n.target)) is module for n in graph.nodes)


def _is_relu(node: fx.Node, module: Module) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return type(module(node)) is nn.ReLU
    return node.op in ("call_function", "call_method") and node.target in _RELUS


def _operands(value: Any) -> list[fx.Node]:
    """The two values that a sum is made of, what is computed last first; none if it is no such sum."""
    if not isinstance(value, fx.Node) or value.op not in ("call_function", "call_method"):
        return []
    unusual = len(value.args) != 2 or value.kwargs.get("alpha", 1) != 1 or set(value.kwargs) - {"alpha"}
    if value.target not in _ADDITIONS or unusual:
        return []
    sides = [side for side in value.args if isinstance(side, fx.Node)]
    order = list(value.graph.nodes)
    return sorted(sides, key=lambda side: -order.index(side)) if len(set(sides)) == 2 else []


def _with_residual(
    sides: list[fx.Node], sum: Any, relu: fx.Node, norm_of: Callable[[Any], tuple[fx.Node, list[fx.Node]] | None]
) -> Iterator[Pattern]:
    """The patterns of a sum: the batch norm that is called last comes first."""
    for side, other in zip(sides, reversed(sides), strict=True):
        norm = norm_of(side)
        if norm is not None:
            how = _ADDITIONS[sum.target]
            text = f"output {how} residual" if side is sum.args[0] else f"residual {how} output"
            yield Pattern(*norm, relu, sum, other, text)


def _refusal(pattern: Pattern, graph: fx.Graph, module: Module) -> str | None:
    norm = pattern.norm
    if len(norm.args) != 1 or norm.kwargs or not isinstance(norm.args[0], fx.Node):
        return "the batch norm gets more than its input"
    called = module(norm)
    if sum(module(node) is called for node in graph.nodes) > 1:
        return "the batch norm is called more than once"
    if pattern.how == "residual += output":
        return "the addition writes to the other operand"
    chain = [norm, *pattern.between, *([pattern.addition] if pattern.addition else [])]
    if any(len(node.users) > 1 for node in chain):
        return "what the ReLU gets is used elsewhere too"
    order = list(graph.nodes)
    if any(node.op == "get_attr" and str(node.target).startswith(f"{norm.target}.") for node in order):
        return "the forward looks at the batch norm's tensors"
    later = order[order.index(norm) + 1 : order.index(pattern.relu)]
    after_addition = later[later.index(pattern.addition) + 1 :] if pattern.addition else []
    for held, nodes in ((norm.args[0], later), (pattern.residual, after_addition)):
        if held is not None and any(_may_write(n, held, module) for n in nodes if n not in chain):
            return "something between the batch norm and the ReLU may write to what they get"
    return None


def _may_write(node: fx.Node, held: fx.Node, module: Module) -> bool:
    """Whether a call may change a value that it has been given, or one that shares memory with it."""
    called = module(node)
    if called is not None:
        if isinstance(called, (*_PURE, *_PURE_AS_VIEWS)):
            return False
    elif node.op in ("call_function", "call_method"):
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
        inplace = name.endswith("_") or bool(node.kwargs.get("inplace")) or node.target is operator.setitem
        if _is_of_torch(node) and not inplace and not (name.startswith("i") and hasattr(operator, f"__{name}__")):
            return False
    else:
        return False
    memory = _memory(held, module)
    return any(memory & _memory(argument, module) for argument in node.all_input_nodes)


def _is_of_torch(node: fx.Node) -> bool:
    of = getattr(node.target, "__module__", None) or ""
    return node.op == "call_method" or of.partition(".")[0] in ("torch", "_operator", "builtins", "")


def _memory(node: fx.Node, module: Module) -> set[fx.Node]:
    """The values whose memory a value may lie in."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        if not isinstance(module(node), _PURE):
            waiting.extend(node.all_input_nodes)
    return found


def views(graph: fx.Graph, root: nn.Module) -> list[fx.Node]:
    """The calls of `view` that may get an image of layers of ours, where nobody would notice a copy.

    That is what a convolution or a pooling gave, what the module is called with, or what was computed of these.
    """
    images: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_module":
            gives = any(isinstance(inner, IMAGES) for inner in root.get_submodule(str(node.target)).modules())
        else:
            gives = node.op == "placeholder"
        passes = node.op == "call_module" or (node.op in ("call_function", "call_method") and _is_of_torch(node))
        if gives or (passes and not images.isdisjoint(node.all_input_nodes)):
            images.add(node)

    def is_read_only(node: fx.Node) -> bool:
        """Whether but for its sizes nothing else uses what is viewed."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return all(
            user is node
            or user.target in ("size", "dim")
            or (user.target is getattr and user.args[1] in ("shape", "ndim"))
            for user in source.users
        )

    calls = [node for node in graph.nodes if node.op == "call_method" and node.target == "view" and not node.kwargs]
    return [node for node in calls if len(node.args) > 1 and node.args[0] in images and is_read_only(node)]


def rewrite(graph: fx.Graph, patterns: list[Pattern], viewing: list[fx.Node], module: Module) -> str:
    """Puts one call for each pattern and view into the graph, and returns the forward as Python text."""
    for call in viewing:
        call.op, call.target = "call_function", view
    for pattern in patterns:
        with graph.inserting_before(pattern.relu):
            norm = graph.create_node("get_attr", str(pattern.norm.target))
            between = [graph.create_node("get_attr", str(node.target)) for node in pattern.between]
            relu = None
            if pattern.relu.op == "call_module":
                relu = graph.create_node("get_attr", str(pattern.relu.target))
            arguments: list[Any] = [norm, between, relu, pattern.norm.args[0]]
            if pattern.residual is not None:
                arguments += [pattern.residual, pattern.how]
            fused = graph.call_function(batch_norm_relu, tuple(arguments))
        pattern.relu.replace_all_uses_with(fused)
        for node in (pattern.relu, pattern.addition, *reversed(pattern.between), pattern.norm):
            if node is not None:
                graph.erase_node(node)
    code = graph.python_code("self")
    return f"{_format_import_block(code.globals, sys_importer)}\n\n{code.src}"
