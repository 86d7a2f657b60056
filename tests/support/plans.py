"""Plans made by hand: values and steps by name of their numbers, and the same steps in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from conditions import relative_error, tolerance
from torch import Tensor
from torch.nn import functional as F

ARENA, INPUT, OUTPUT = range(3)
CONV2D, MAX_POOL2D, AVG_POOL2D, ADAPTIVE_AVG_POOL2D, LINEAR = range(5)
SCALE_SHIFT, ADD, ACTIVATION, COPY, SCALE_IMAGES, INVERTED_RESIDUAL = range(5, 11)
NONE, RELU, SIGMOID, RELU6, HARD_SIGMOID, HARD_SWISH, SILU = range(7)
ACTIVATIONS = (lambda x: x, F.relu, torch.sigmoid, F.relu6, F.hardsigmoid, F.hardswish, F.silu)  # by number


class PlanBuilder:
    """Collects what torch.classes.fastcnn.Plan is made of."""

    def __init__(self) -> None:
        self.values: list[list[int]] = []
        self.steps: list[list[int]] = []
        self.constants: list[Tensor] = []
        self.arena = 0

    def input(self, *chw: int) -> int:
        """A network's input [N, C, H, W] or [N, C]; returns the value's number."""
        index = len({v[1] for v in self.values if v[0] == INPUT})
        return self.value(INPUT, index, *chw)

    def output(self, *chw: int, index: int | None = None, pitch: int = 0, first: int = 0) -> int:
        """A result, or channels of one."""
        if index is None:
            index = len({v[1] for v in self.values if v[0] == OUTPUT})
        return self.value(OUTPUT, index, *chw, pitch=pitch, first=first)

    def inside(self, *chw: int, pitch: int | None = None, first: int = 0, at: int | None = None) -> int:
        """A value in the arena, at a place of its own or at value `at`'s."""
        c, h, w = (*chw, 1, 1)[:3]
        pitch = c if pitch is None else pitch
        if at is not None:
            return self.value(ARENA, self.values[at][1], c, h, w, pitch=pitch, first=first)
        offset = self.arena
        self.arena = offset + -(-h * w * pitch // 16) * 16
        return self.value(ARENA, offset, c, h, w, pitch=pitch, first=first)

    def value(self, storage: int, place: int, *chw: int, pitch: int = 0, first: int = 0) -> int:
        """Any value; returns its number."""
        c, h, w = (*chw, 0, 0)[:3]
        self.values.append([storage, place, h, w, c, pitch, first])
        return len(self.values) - 1

    def constant(self, t: Tensor | None) -> int:
        """The number of a constant, -1 of none."""
        if t is None:
            return -1
        self.constants.append(t.float())
        return len(self.constants) - 1

    def step(self, *fields: int) -> None:
        """A step's record."""
        self.steps.append([int(f) for f in fields])

    def conv2d(
        self,
        x: int,
        out: int,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: int = -1,
        activation: int = NONE,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        pooled: int = -1,
    ) -> None:
        """A convolution's step."""
        constants = self.constant(weight), self.constant(bias)
        self.step(CONV2D, x, out, *constants, residual, activation, *stride, *padding, *dilation, groups, pooled)

    def linear(self, x: int, out: int, weight: Tensor, bias: Tensor | None = None, activation: int = NONE) -> None:
        """A linear layer's step."""
        self.step(LINEAR, x, out, self.constant(weight), self.constant(bias), activation)

    def inverted_residual(
        self,
        x: int,
        out: int,
        layers: Sequence[tuple[Tensor, Tensor | None, int] | None],
        residual: int = -1,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> None:
        """The step of a depthwise layer between two of 1x1: weight, bias and activation of each, or None."""
        numbers = [
            [-1, -1, NONE] if layer is None else [self.constant(layer[0]), self.constant(layer[1]), layer[2]]
            for layer in layers
        ]
        windows = *stride, *padding, *dilation
        self.step(INVERTED_RESIDUAL, x, out, residual, *numbers[0], *numbers[1], *windows, *numbers[2])

    def make(self) -> Any:
        """The plan."""
        return torch.classes.fastcnn.Plan(self.values, self.steps, self.constants, self.arena)


def activate(x: Tensor, activation: int) -> Tensor:
    """The activation of that number."""
    return ACTIVATIONS[activation](x)


def check_plan(plan: Any, inputs: list[Tensor], expected: list[Tensor], terms: int) -> None:
    """Runs a plan and holds its outputs to the expected ones, of sums of that many terms."""
    outputs = plan.run(inputs)
    assert len(outputs) == len(expected)
    for got, wanted in zip(outputs, expected, strict=True):
        assert got.dtype == torch.float32
        assert got.is_contiguous(memory_format=torch.channels_last) if got.dim() == 4 else got.is_contiguous()
        assert relative_error(got.double(), wanted) <= tolerance(terms, torch.float32)
