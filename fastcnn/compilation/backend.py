"""torch.compile(model, backend="fastcnn"): inference through a compiled network, its weights frozen.

torch finds `fastcnn` by the entry point in pyproject.toml.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastcnn.compilation.module import CompiledModule, compile_checked


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
        RuntimeError: gradients are required; or fastcnn.compile's errors. torch.compile wraps them.
    """
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    if torch.is_grad_enabled() and any(isinstance(e, Tensor) and e.requires_grad for e in example_inputs):
        raise RuntimeError(
            "fastcnn.compile: the backend is for inference, and has no gradients; call the model under "
            "torch.no_grad() or torch.inference_mode()"
        )
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
        frozen: parameters and buffers.
        passed: the other tensors, the inputs of the network.
        sizes: which input's which size a number is.
    """

    count: int
    frozen: list[int]
    passed: list[int]
    sizes: dict[int, tuple[int, int]]

    @staticmethod
    def of(placeholders: Sequence[fx.Node], values: Sequence[Any]) -> _Arguments:
        """Those of a graph that is called with `values`."""
        given = list(enumerate(zip(placeholders, values, strict=True)))
        frozen = [i for i, (node, value) in given if isinstance(value, Tensor) and _belongs_to_module(node, value)]
        passed = [i for i, (_, value) in given if isinstance(value, Tensor) and i not in frozen]
        if not passed:
            raise RuntimeError("fastcnn.compile: expected a graph with a tensor as input")
        examples = [node.meta["example_value"] if i in passed else None for i, (node, _) in given]
        numbers = [i for i, (_, value) in given if not isinstance(value, Tensor)]
        sizes = {i: _dimension(str(placeholders[i].meta["example_value"]), values[i], examples) for i in numbers}
        return _Arguments(len(given), frozen, passed, sizes)


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


class _Networks:
    """A graph as a function, with a network for each set of frozen tensors that it is called with.

    torch.compile calls one graph for all modules of the same code and sizes, each with its own parameters.
    """

    def __init__(self, graph: fx.GraphModule, arguments: _Arguments) -> None:
        self.graph, self.arguments = graph, arguments
        self.made: dict[tuple[int, ...], tuple[list[weakref.ref[Tensor]], CompiledModule]] = {}
        self.lock = threading.Lock()

    def __call__(self, *inputs: Any) -> Any:
        return self.find(inputs)(*[inputs[index].detach() for index in self.arguments.passed])

    def find(self, inputs: Sequence[Any]) -> CompiledModule:
        """The network of the frozen tensors among `inputs`, as they were at the first call with them."""
        tensors = [inputs[index] for index in self.arguments.frozen]
        key = tuple(map(id, tensors))
        with self.lock:
            known = self.made.get(key)
            if known is None or any(reference() is not t for reference, t in zip(known[0], tensors, strict=True)):
                self.made = {k: v for k, v in self.made.items() if all(reference() is not None for reference in v[0])}
                known = self.made[key] = [weakref.ref(t) for t in tensors], self._make(inputs)
            return known[1]

    def _make(self, inputs: Sequence[Any]) -> CompiledModule:
        frozen = _Frozen(self.graph, self.arguments, inputs).eval()
        examples = [inputs[index].detach() for index in self.arguments.passed]
        return compile_checked(frozen, examples, dynamic=bool(self.arguments.sizes))


class _Frozen(nn.Module):
    """The graph as a module of its own tensors; its forward takes what is neither parameter nor buffer nor a size."""

    def __init__(self, graph: fx.GraphModule, arguments: _Arguments, values: Sequence[Any]) -> None:
        super().__init__()
        self.graph, self.arguments = graph, arguments
        for index in arguments.frozen:
            self.register_buffer(f"tensor_{index}", values[index].detach())

    def forward(self, *inputs: Tensor) -> Any:
        """The graph's outputs."""
        values: list[Any] = [None] * self.arguments.count
        for index, value in zip(self.arguments.passed, inputs, strict=True):
            values[index] = value
        for index in self.arguments.frozen:
            values[index] = getattr(self, f"tensor_{index}")
        for index, (tensor, dim) in self.arguments.sizes.items():
            values[index] = values[tensor].shape[dim]
        return self.graph(*values)


def _belongs_to_module(node: fx.Node, value: Tensor) -> bool:
    if isinstance(value, nn.Parameter):
        return True
    argument = node.meta.get("grapharg")
    source = getattr(argument, "source", None)
    return source is not None and "NN_MODULE" in source.guard_source.name
