"""Turns nodes into one plan: records of values and steps, in the form that torch.classes.fastcnn.Plan takes.

spec.py describes the records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastcnn.compilation.graph import Node, Value
from fastcnn.compilation.memory import Buffer, assign_offsets
from fastcnn.compilation.spec import ACTIVATIONS, ARENA, INPUT, OPCODES, OUTPUT


@dataclass(frozen=True)
class _Part:
    """Channels of a value: from `first` on, `channels` of them; or the copy of the value that the plan returns."""

    value: Value
    first: int
    channels: int
    returned: bool = False


class PlanBuilder:
    """Places values and writes records."""

    def __init__(self, nodes: Sequence[Node], outputs: Sequence[Value], constant: Callable[[Tensor], int]) -> None:
        """Takes the plan's nodes in order, the values that others need of it, and what numbers its constants."""
        self.nodes = nodes
        self.constant = constant
        made = {value for node in nodes for value in node.outputs}
        self.inputs = list(dict.fromkeys(v for node in nodes for v in node.inputs if v not in made))
        self.outputs = list(outputs)
        self.parents = _slices(nodes)
        self.returned = {v for v in self.outputs if v not in self.parents}  # written where they are returned
        self.constants: list[int] = []
        # Op, values with the written one last (of a convolution see _with_residual), numbers.
        self.steps: list[tuple[str, list[_Part | None], list[int]]] = []

    def build(self) -> dict[str, Any]:
        """The plan as plain data; `inputs` and `outputs` are left to the caller."""
        for node in self.nodes:
            self._emit(node)
        roots, buffers = self._buffers()
        offsets, arena = assign_offsets(buffers)
        places = dict(zip(roots, offsets, strict=True))
        records: list[list[int]] = []
        numbers: dict[tuple[int, ...], int] = {}

        def number(part: _Part | None) -> int:
            if part is None:
                return -1
            record = self._record(part, places)
            if tuple(record) not in numbers:
                numbers[tuple(record)] = len(records)
                records.append(record)
            return numbers[tuple(record)]

        steps = [_step(op, [number(part) for part in parts], rest) for op, parts, rest in self.steps]
        return {"values": records, "steps": steps, "constants": self.constants, "arena": arena}

    def _emit(self, node: Node) -> None:
        if node.op == "split":  # those who read a part know where it lies
            return
        output = _whole(node.output)
        if node.op == "concat":
            for value, first in _side_by_side(node.inputs):
                if self.parents.get(value) != (node.output, first):
                    self.steps.append(("copy", [_whole(value), _Part(node.output, first, value.channels)], []))
        else:
            values = _with_residual(node) if node.op in _STEPS_THAT_ADD else [*node.inputs, node.output]
            parts = [None if value is None else _whole(value) for value in values]
            self.steps.append((node.op, parts, self._numbers(node)))
        if node.output in self.outputs and node.output not in self.returned:
            self.steps.append(("copy", [output, _Part(node.output, 0, output.channels, returned=True)], []))

    def _numbers(self, node: Node) -> list[int]:
        """What follows a step's values; its constants' and activation's numbers come first."""
        given = node.attributes
        if node.op == "inverted_residual":
            layers = [self._layer(node, name) for name in ("expand_", "", "project_")]
            return [*layers[0], *layers[1], *given["stride"], *given["padding"], *given["dilation"], *layers[2]]
        numbers = [self._constant(node, name) for name in _CONSTANTS.get(node.op, ())]
        if "activation" in given:
            numbers.append(ACTIVATIONS.index(given["activation"]))
        for name in _ATTRIBUTES.get(node.op, ()):
            numbers += given[name] if isinstance(given[name], list) else [given[name]]
        return numbers

    def _layer(self, node: Node, prefix: str) -> list[int]:
        """Weight, bias and activation of one layer of several."""
        activation = ACTIVATIONS.index(node.attributes[f"{prefix}activation"])
        return [self._constant(node, f"{prefix}weight"), self._constant(node, f"{prefix}bias"), activation]

    def _constant(self, node: Node, name: str) -> int:
        if name not in node.constants:
            return -1
        index = self.constant(node.constants[name])
        if index not in self.constants:
            self.constants.append(index)
        return self.constants.index(index)

    def _root(self, value: Value) -> tuple[Value, int]:
        """The buffer that a value lies in, and its first channel there."""
        first = 0
        while value in self.parents:
            value, offset = self.parents[value]
            first += offset
        return value, first

    def _in_arena(self, part: _Part) -> bool:
        return not (part.returned or part.value in self.inputs or self._root(part.value)[0] in self.returned)

    def _buffers(self) -> tuple[list[Value], list[Buffer]]:
        buffers: dict[Value, Buffer] = {}
        for time, (_, parts, _) in enumerate(self.steps):
            for part in parts:
                if part is not None and self._in_arena(part):
                    root, _ = self._root(part.value)
                    size = root.height * root.width * root.channels
                    buffers.setdefault(root, Buffer(size, time, time)).last = time
        return list(buffers), list(buffers.values())

    def _record(self, part: _Part, offsets: dict[Value, int]) -> list[int]:
        value = part.value
        root, first = (value, 0) if part.returned else self._root(value)
        image = [value.height, value.width]
        if self._in_arena(part):
            return [ARENA, offsets[root], *image, part.channels, root.channels, first + part.first]
        if len(root.sizes) == 1:
            image = [0, 0]
        if value in self.inputs:
            return [INPUT, self.inputs.index(value), *image, part.channels, 0, 0]
        return [OUTPUT, self.outputs.index(root), *image, part.channels, root.channels, first + part.first]


_STEPS_THAT_ADD = ("conv2d", "inverted_residual")
_CONSTANTS = {"conv2d": ("weight", "bias"), "linear": ("weight", "bias"), "scale_shift": ("scale", "shift")}
_ATTRIBUTES = {
    "conv2d": ("stride", "padding", "dilation", "groups"),
    "max_pool2d": ("kernel", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor"),
}


def _whole(value: Value) -> _Part:
    return _Part(value, 0, value.channels)


def _side_by_side(values: Sequence[Value]) -> Iterator[tuple[Value, int]]:
    """Values whose channels follow one another, each with its first channel."""
    first = 0
    for value in values:
        yield value, first
        first += value.channels


def _slices(nodes: Sequence[Node]) -> dict[Value, tuple[Value, int]]:
    """By value that lies within another: that one, and the first channel there.

    It is what a split gives, or what its producer writes straight into a concat.
    """
    parents: dict[Value, tuple[Value, int]] = {}
    made: set[Value] = set()
    for node in nodes:
        if node.op == "concat":
            for value, first in _side_by_side(node.inputs):
                if value in made:
                    parents.setdefault(value, (node.output, first))
        if node.op == "split":
            for value, first in _side_by_side(node.outputs):
                parents[value] = (node.inputs[0], first)
        made.update(node.outputs)
    return parents


def _with_residual(node: Node) -> list[Value | None]:
    """Input, residual, output and, of a convolution, maxima of the output: none where there are none."""
    source, residual = [*node.inputs, None][:2]
    if node.op == "inverted_residual":
        return [source, residual, node.output]
    output, pooled = [*reversed(node.outputs), None][:2]
    return [source, residual, output, pooled]


def _step(op: str, values: list[int], numbers: list[int]) -> list[int]:
    """The record: a convolution's residual comes behind its constants, and the maxima of its output last."""
    if op == "conv2d":
        source, residual, output, pooled = values
        return [OPCODES[op], source, output, *numbers[:2], residual, *numbers[2:], pooled]
    if op == "inverted_residual":
        source, residual, output = values
        return [OPCODES[op], source, output, residual, *numbers]
    return [OPCODES[op], *values, *numbers]
