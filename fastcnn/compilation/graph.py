"""The graph that the passes work on: values without their batch dimension, and the nodes that make them.

A node is either a step of a plan (its `op` is one of OPERATORS) or one call of an op of torch's dispatcher ("aten").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# What a plan knows, and "reshape", between [N, C, 1, 1] and [N, C] or in front of a linear layer, which passes remove.
PLAN_OPS = (
    "conv2d",
    "max_pool2d",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "linear",
    "scale_shift",
    "add",
    "activation",
    "scale_images",
    "inverted_residual",
    "concat",
    "split",
)
ATEN = "aten"
RESHAPE = "reshape"


@dataclass(eq=False)
class Value:
    """What a node makes or the caller passes.

    Attributes:
        name: the name in the exported program.
        shape: the sizes of one image, (C, H, W) or (C,), of a float32 tensor whose first dimension is the batch; None
            for anything else, which only torch's ops can take.
    """

    name: str
    shape: tuple[int, ...] | None

    @property
    def height(self) -> int:
        """Rows; 1 for a vector."""
        return self.sizes[1] if len(self.sizes) == 3 else 1

    @property
    def width(self) -> int:
        """Columns; 1 for a vector."""
        return self.sizes[2] if len(self.sizes) == 3 else 1

    @property
    def channels(self) -> int:
        """Channels, or the vector's length."""
        return self.sizes[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a value that plans can hold."""
        if self.shape is None:
            raise AssertionError(f"{self.name} is no value of a plan")
        return self.shape


@dataclass(frozen=True)
class Input:
    """The place of a node's input number `index` in the arguments of an op of torch's."""

    index: int


@dataclass(eq=False)
class Node:
    """One step.

    Attributes:
        op: one of PLAN_OPS, ATEN or RESHAPE.
        inputs: the values it reads; of a convolution and an inverted residual, what they add comes second.
        outputs: one value, or what an op of torch's returns, or the runs of channels that a value is split into. A
            convolution that pools gives the maxima, and second what it has room for, which nothing reads.
        attributes: numbers of a plan's step; `op`, `args` and `kwargs` of one of torch's (Input and Tensor inside).
        constants: weights, by the names that the step has for them; what passes compute is float64.
    """

    op: str
    inputs: list[Value]
    outputs: list[Value]
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)

    @property
    def output(self) -> Value:
        """The one output of a plan's step that is no split, and the one that others may read."""
        return self.outputs[0]


@dataclass
class Graph:
    """A network: nodes in an order in which they can run.

    Attributes:
        signature: name, shape without the batch, and dtype of each input, as documents have them.
        batch: the one batch size that it is for, or None for any.
        inputs: what the caller passes.
        nodes: the steps.
        outputs: what comes back, leaves of `structure` in order.
        structure: nested lists, tuples and dicts (see spec.Structure) with the outputs' numbers as leaves.
    """

    signature: list[dict[str, Any]]
    batch: int | None
    inputs: list[Value]
    nodes: list[Node]
    outputs: list[Value]
    structure: Any

    def users(self) -> dict[Value, list[Node]]:
        """The nodes that read each value, once for each time that they do; none for the graph's outputs."""
        users: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                users.setdefault(value, []).append(node)
        return users

    def producers(self) -> dict[Value, Node]:
        """The node that makes each value."""
        return {value: node for node in self.nodes for value in node.outputs}

    def replace(self, old: Value, new: Value) -> None:
        """Lets whatever reads `old` read `new`."""
        for node in self.nodes:
            node.inputs = [new if value is old else value for value in node.inputs]
        self.outputs = [new if value is old else value for value in self.outputs]

    def remove_unused(self) -> None:
        """Drops the nodes that nothing reads; all ops are pure."""
        used = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if any(value in used for value in node.outputs):
                used.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]


def map_leaves(nested: Any, change: Callable[[Any], Any]) -> Any:
    """The same lists, tuples and dicts with changed leaves; tuples become lists, as JSON has no others."""
    if isinstance(nested, (list, tuple)):
        return [map_leaves(item, change) for item in nested]
    if isinstance(nested, dict):
        return {key: map_leaves(item, change) for key, item in nested.items()}
    return change(nested)


def leaves(nested: Any) -> Iterator[Any]:
    """The leaves of nested lists, tuples and dicts."""
    if isinstance(nested, (list, tuple)):
        for item in nested:
            yield from leaves(item)
    elif isinstance(nested, dict):
        for item in nested.values():
            yield from leaves(item)
    else:
        yield nested
