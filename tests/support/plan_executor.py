"""Runs a plan of fastcnn.compilation.spec with torch's functions, in any dtype: the oracle of what compiling makes.

Values lie in a real arena, at first full of NaN. For each float of an image it knows which step wrote it last, and
refuses to read what was written for another buffer since.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# By opcode.
NAMES = (
    *("conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "linear"),
    *("scale_shift", "add", "activation", "copy", "scale_images", "inverted_residual"),
)
ACTIVATIONS = (lambda x: x, torch.relu, torch.sigmoid, F.relu6, F.hardsigmoid, F.hardswish, F.silu)


class PlanExecutor:
    """torch.classes.fastcnn.Plan, slowly; `dtype` is what it computes in."""

    dtype = torch.float64

    def __init__(self, values: list[list[int]], steps: list[list[int]], constants: list[Tensor], arena: int) -> None:
        self.values, self.steps, self.arena = values, steps, arena
        self.constants = [constant.to(self.dtype) for constant in constants]
        for storage, offset, height, width, channels, pitch, first in values:
            if storage == 0 and not (
                offset % 16 == 0
                and 0 <= first <= first + channels <= pitch
                and offset + height * width * pitch <= arena
            ):
                raise RuntimeError("plan: a value outside of the arena")

    def describe(self) -> list[str]:
        return [f"{NAMES[step[0]]} (Python)" for step in self.steps]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        assert len(inputs) == len({index for storage, index, *_ in self.values if storage == 1})
        assert all(x.dtype == torch.float32 and x.shape[0] == inputs[0].shape[0] for x in inputs)
        assert not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))
        return _Run(self, inputs).run()


class _Run:
    def __init__(self, plan: PlanExecutor, inputs: Sequence[Tensor]) -> None:
        self.plan = plan
        self.batch = inputs[0].shape[0]
        self.inputs = [tensor.to(plan.dtype) for tensor in inputs]
        self.arena = torch.full((self.batch * plan.arena,), torch.nan, dtype=plan.dtype)
        self.writer = torch.full((plan.arena,), -1)  # of each float of an image: the number of the value
        self.outputs: dict[int, Tensor] = {}

    def run(self) -> list[Tensor]:
        for step in self.plan.steps:
            self.step(*step)
        # Rounded once, as what the caller gets is float32.
        outputs = [self.outputs[index].float() for index in sorted(self.outputs)]
        return [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in outputs]

    def view(self, number: int) -> Tensor:
        """The value as [N, C, H, W] over the arena."""
        _, offset, height, width, channels, pitch, first = self.plan.values[number]
        strides = (height * width * pitch, 1, width * pitch, pitch)
        return self.arena.as_strided((self.batch, channels, height, width), strides, self.batch * offset + first)

    def floats(self, number: int) -> Tensor:
        _, offset, height, width, channels, pitch, first = self.plan.values[number]
        return self.writer.as_strided((height, width, channels), (width * pitch, pitch, 1), offset + first)

    def read(self, number: int) -> Tensor:
        storage, index, height, width, channels, pitch, first = self.plan.values[number]
        if storage == 1:
            tensor = self.inputs[index]
            assert tensor.shape[1:] == ((channels, height, width) if height else (channels,)), "an input's size"
            return tensor if height else tensor[:, :, None, None]
        if storage == 2:
            part = self.outputs[index][:, first : first + channels]
            assert not part.isnan().any(), f"value {number} is read before it is written"
            return part if height else part[:, :, None, None]
        for writer in self.floats(number).unique().tolist():
            assert writer >= 0, f"value {number} is read where nothing was written"
            other = self.plan.values[writer]
            same_buffer = (other[1], other[2] * other[3], other[5]) == (index, height * width, pitch)
            assert same_buffer, f"value {number} is read where value {writer} was written since"
            inside = first <= other[6] and other[6] + other[4] <= first + channels
            around = other[6] <= first and first + channels <= other[6] + other[4]
            assert inside or around, f"value {number} is read across value {writer}"
        return self.view(number).clone()

    def write(self, number: int, result: Tensor) -> None:
        storage, index, height, width, channels, pitch, first = self.plan.values[number]
        shape = (self.batch, channels, max(height, 1), max(width, 1))
        assert result.shape == shape, f"a step made {tuple(result.shape)} for a value of {shape}"
        if storage == 2:
            whole = (self.batch, pitch, height, width) if height else (self.batch, pitch)
            if index not in self.outputs:
                self.outputs[index] = torch.full(whole, torch.nan, dtype=self.plan.dtype)
            part = self.outputs[index][:, first : first + channels]
            assert part.isnan().all(), "an output is written twice"
            part.copy_(result if height else result[:, :, 0, 0])
        else:
            assert storage == 0, "a step writes to an input"
            self.view(number).copy_(result)
            self.floats(number).fill_(number)

    def constant(self, number: int) -> Tensor | None:
        return None if number < 0 else self.plan.constants[number]

    def layer(
        self, source: Tensor, weight: int, bias: int, activation: int, *numbers: Any, residual: int = -1
    ) -> Tensor:
        result = F.conv2d(source, self.constant(weight), self.constant(bias), *numbers)
        return ACTIVATIONS[activation](result if residual < 0 else result + self.read(residual))

    def step(self, opcode: int, *given: int) -> None:
        source, output = self.read(given[0]), given[1]
        name = NAMES[opcode]
        if name == "conv2d":
            weight, bias, residual, activation, *numbers = given[2:]
            stride, padding, dilation, groups, pooled = numbers[:2], numbers[2:4], numbers[4:6], *numbers[6:]
            numbers = stride, padding, dilation, groups
            result = self.layer(source, weight, bias, activation, *numbers, residual=residual)
            if pooled >= 0:
                self.write(output, result)
                self.floats(output).fill_(-1)
                result, output = F.max_pool2d(result, 2), pooled
        elif name == "max_pool2d":
            kernel, stride, padding, dilation = given[2:4], given[4:6], given[6:8], given[8:10]
            result = F.max_pool2d(source, kernel, stride, padding, dilation, bool(given[10]))
        elif name == "avg_pool2d":
            kernel, stride, padding = given[2:4], given[4:6], given[6:8]
            ceil_mode, count_include_pad, divisor = given[8:]
            result = F.avg_pool2d(
                source, kernel, stride, padding, bool(ceil_mode), bool(count_include_pad), divisor or None
            )
        elif name == "adaptive_avg_pool2d":
            result = F.adaptive_avg_pool2d(source, [max(size, 1) for size in self.plan.values[output][2:4]])
        elif name == "linear":
            weight, bias, activation = given[2:]
            rows = source.permute(0, 2, 3, 1).flatten(1)
            result = ACTIVATIONS[activation](F.linear(rows, self.constant(weight), self.constant(bias)))[
                :, :, None, None
            ]
        elif name == "scale_shift":
            scale, shift = (self.constant(number).reshape(-1, 1, 1) for number in given[2:4])
            result = ACTIVATIONS[given[4]](source * scale + shift)
        elif name == "add":
            output = given[2]
            result = ACTIVATIONS[given[3]](source + self.read(given[1]))
        elif name == "activation":
            result = ACTIVATIONS[given[2]](source)
        elif name == "scale_images":
            output = given[2]
            result = source * self.read(given[1])
        elif name == "inverted_residual":
            residual, expand, middle, numbers, project = given[2], given[3:6], given[6:9], given[9:15], given[15:18]
            stride, padding, dilation = numbers[:2], numbers[2:4], numbers[4:6]
            result = source if expand[0] < 0 else self.layer(source, *expand)
            result = self.layer(result, *middle, stride, padding, dilation, result.shape[1])
            if project[0] >= 0:
                result = self.layer(result, *project, residual=residual)
        else:
            result = source
        self.write(output, result)
