"""torch.compile(model, backend="fastcnn"): inference through a compiled network, its weights frozen.

torch finds `fastcnn` by the entry point in pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastcnn.compilation.build import build
from fastcnn.compilation.module import CompiledModule


def fastcnn(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compiles a graph that torch.compile has traced, as fastcnn.compile does a model.

    Parameters and buffers are frozen as they are now: compile again (torch.compiler.reset) to take new ones.

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
    frozen = _Frozen(graph, placeholders, example_inputs)
    examples = [example_inputs[index].detach() for index in frozen.passed]
    if not examples:
        raise RuntimeError("fastcnn.compile: expected a graph with a tensor as input")
    frozen.eval()
    with torch._guards.tracing(None):  # a trace of its own, whose guards are not those of the one that is under way
        compiled = CompiledModule(build(frozen, examples, dynamic=frozen.dynamic))
    passed = frozen.passed

    def run(*inputs: Any) -> Any:
        return compiled(*[inputs[index].detach() for index in passed])

    return run


class _Frozen(nn.Module):
    """The graph as a module of its own tensors; its forward takes what is neither parameter nor buffer nor a size."""

    def __init__(self, graph: fx.GraphModule, placeholders: Sequence[fx.Node], values: Sequence[Any]) -> None:
        super().__init__()
        self.graph = graph
        self.passed: list[int] = []
        self.frozen: dict[int, str] = {}
        for index, (node, value) in enumerate(zip(placeholders, values, strict=True)):
            if not isinstance(value, Tensor):
                continue
            if _belongs_to_module(node, value):
                self.frozen[index] = f"tensor_{index}"
                self.register_buffer(f"tensor_{index}", value.detach())
            else:
                self.passed.append(index)
        symbols = {index for index, value in enumerate(values) if not isinstance(value, Tensor)}
        self.sizes = {index: self._dimension(values, placeholders, index) for index in symbols}
        self.dynamic = bool(symbols)
        self.count = len(placeholders)

    def _dimension(self, values: Sequence[Any], placeholders: Sequence[fx.Node], index: int) -> tuple[int, int]:
        """Which tensor's which size a symbol is."""
        name = str(placeholders[index].meta["example_value"])
        for tensor in self.passed:
            for dim, size in enumerate(placeholders[tensor].meta["example_value"].shape):
                if str(size) == name:
                    if dim > 0:
                        raise RuntimeError(
                            f"fastcnn.compile: expected sizes that stay, the batch apart, but size {dim} of an input "
                            "changes from call to call; mark it with torch._dynamo.mark_static"
                        )
                    return tensor, dim
        raise RuntimeError(f"fastcnn.compile: expected tensors as inputs, but got the number {values[index]}")

    def forward(self, *inputs: Tensor) -> Any:
        """The graph's outputs."""
        arguments: list[Any] = [None] * self.count
        for index, value in zip(self.passed, inputs, strict=True):
            arguments[index] = value
        for index, name in self.frozen.items():
            arguments[index] = getattr(self, name)
        for index, (tensor, dim) in self.sizes.items():
            arguments[index] = arguments[tensor].shape[dim]
        return self.graph(*arguments)


def _belongs_to_module(node: fx.Node, value: Tensor) -> bool:
    if isinstance(value, nn.Parameter):
        return True
    argument = node.meta.get("grapharg")
    source = getattr(argument, "source", None)
    return source is not None and "NN_MODULE" in source.guard_source.name
