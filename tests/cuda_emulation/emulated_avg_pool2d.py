"""avg_pool2d's kernels: regular and adaptive windows, one over the whole image, and the gradient."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from conditions import tolerance
from emulated_kernels import Cell, Kernel, Mutation
from emulation import Emulator, Launch
from images import CHANNELS, DTYPES, all_tilings, assert_near, draw, place, result, sizes, tilings
from torch import Tensor

KERNELS = [
    Kernel(
        "avg_pool2d_kernel",
        "avg_pool2d.cuh",
        [
            Mutation("index", "(rows.begin + kh) * g.in_w + cols.begin", "(rows.begin + kh) * g.in_w"),
            Mutation("bounds", "((i + 1) * a.in + a.out - 1) / a.out", "((i + 1) * a.in + a.out) / a.out"),
            Mutation("arithmetic", "padded < a.kernel ? padded : a.kernel", "a.kernel"),
            Mutation("arithmetic", "args.divisor != 0 ? args.divisor", "args.divisor > 0 ? args.divisor"),
            Mutation("bounds", "start < 0 ? divide_up(-start, a.dilation) : 0", "0", "pool2d.cuh"),
            Mutation("bounds", "row < place.row_end && place.unit < t.units", "row < place.row_end", "pool2d.cuh"),
        ],
    ),
    Kernel(
        "avg_pool2d_backward_kernel",
        "avg_pool2d.cuh",
        [
            Mutation("arithmetic", "sum[i] += grad[i] * scale", "sum[i] = grad[i] * scale"),
            Mutation("index", "((position + 1) * a.out + a.in - 1) / a.in - 1", "(position + 1) * a.out / a.in - 1"),
            Mutation("bounds", "last < a.out ? last : a.out - 1", "last", "pool2d.cuh"),
        ],
    ),
    Kernel(
        "global_avg_pool2d_kernel",
        "avg_pool2d.cuh",
        [
            Mutation("arithmetic", "pixel < chain_end; pixel += blockDim.y", "pixel < chain_end; pixel += 99"),
            Mutation("arithmetic", "chain[kLanes] = {}", "chain[kLanes] = {1}"),
            Mutation("barrier", "sum_over_y(sum, shared);", "if (channels > 0) sum_over_y(sum, shared);"),
            Mutation("unwritten", "other < static_cast<int>(blockDim.y)", "true", "lanes.cuh"),
            Mutation("race", "__syncthreads();\n#pragma unroll\n", "\n#pragma unroll\n", "lanes.cuh"),
            Mutation("bounds", "shared[kLanes * kBlockThreads]", "shared[kLanes]"),
        ],
    ),
]
CELLS = all_tilings(kernel.name for kernel in KERNELS)


@dataclass(frozen=True)
class Configuration:
    """One pooling, with windows or adaptive to `output_size`; the `shifted` tensor is "source" or "result"."""

    dtype: torch.dtype
    n: int
    c: int
    in_h: int
    in_w: int
    kernel: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (0, 0)
    pad: tuple[int, int] = (0, 0)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int = 0
    output_size: tuple[int, int] | None = None
    shifted: str = ""

    def pool(self, input: Tensor) -> Tensor:
        """torch's."""
        if self.output_size:
            return F.adaptive_avg_pool2d(input, self.output_size)
        options = (self.kernel, self.stride, self.pad, self.ceil_mode, self.count_include_pad, self.divisor or None)
        return F.avg_pool2d(input, *options)

    @property
    def possible(self) -> bool:
        """Whether the output has a pixel."""
        return all(size + 2 * p >= k for size, p, k in zip((self.in_h, self.in_w), self.pad, self.kernel, strict=True))


def configurations(rng: random.Random) -> Iterator[Configuration]:
    """Chosen windows in every dtype, then random ones."""
    for dtype in DTYPES:
        for c in (1, 8, 9, 16):
            yield Configuration(dtype, 2, c, 7, 8, (3, 3), (2, 2), (1, 1), True, divisor=-5)
            yield Configuration(dtype, 1, c, 7, 8, (3, 4), (2, 3), (1, 2), True, count_include_pad=False)
            yield Configuration(dtype, 2, c, 7, 5, output_size=(3, 4))
            yield Configuration(dtype, 2, c, 7, 7, output_size=(1, 1))
        for shifted in ("source", "result"):
            yield Configuration(dtype, 2, 16, 6, 5, (3, 2), (2, 1), (1, 1), shifted=shifted)
            yield Configuration(dtype, 2, 16, 6, 5, output_size=(1, 1), shifted=shifted)
        for c in (135, 136):  # several blocks a row, or an image, the last of them with idle threads
            yield Configuration(dtype, 2, c, 5, 34, (2, 2), (2, 2))
            yield Configuration(dtype, 2, c, 5, 3, output_size=(1, 1))
        yield Configuration(dtype, 1, 8, 3, 2, output_size=(5, 7))
        yield Configuration(dtype, 1, 70, 47, 46, output_size=(1, 1))  # several chains a thread
        yield Configuration(dtype, 2, 3, 0, 4, output_size=(1, 1))  # the mean of nothing
        yield Configuration(dtype, 2, 3, 2, 4, output_size=(0, 3))  # the gradient of nothing
    count = 0
    while count < 140:
        kernel = rng.randint(1, 4), rng.randint(1, 4)
        common: dict[str, Any] = dict(
            dtype=rng.choice(DTYPES), **sizes(rng), shifted=rng.choice(["", "", "", "", "source", "result"])
        )
        c = Configuration(
            **common,
            kernel=kernel,
            stride=(rng.randint(1, 4), rng.randint(1, 4)),
            pad=(rng.randint(0, kernel[0] // 2), rng.randint(0, kernel[1] // 2)),
            ceil_mode=rng.random() < 0.5,
            count_include_pad=rng.random() < 0.5,
            divisor=rng.choice([0, 0, 0, 7, -2]),
        )
        if c.possible:
            count += 1
            yield c
        if count % 3 == 0:
            yield Configuration(**common, output_size=(rng.randint(1, 9), rng.randint(1, 9)))
            yield Configuration(**{**common, "c": rng.choice(CHANNELS)}, output_size=(1, 1))


def cells(c: Configuration, launches: list[Launch]) -> set[Cell]:
    """Name what a configuration covers."""
    pixel = -(-c.c * c.dtype.itemsize // 16)
    out_w = c.pool(torch.zeros(1, 1, c.in_h, c.in_w)).shape[3]
    units = {
        "avg_pool2d_kernel": out_w * pixel,
        "avg_pool2d_backward_kernel": c.in_w * pixel,
        "global_avg_pool2d_kernel": pixel,
    }
    return tilings(c.dtype, launches, units)


def check(emulator: Emulator, c: Configuration) -> list[Launch]:
    """Pool, and take the gradient back."""
    library = emulator.library("avg_pool2d")
    input = draw((c.n, c.c, c.in_h, c.in_w), c.dtype)
    exact_input = input.double().requires_grad_()
    expected = c.pool(exact_input)
    shape = tuple(expected.shape)
    source = place(emulator, input, c.shifted == "source")
    output = result(emulator, shape, c.dtype, c.shifted == "result")
    near = tolerance(c.in_h + c.in_w, c.dtype)

    launches = []
    if c.output_size == (1, 1):
        args = library.struct(
            "GlobalAvgPool2dArgs",
            dtype=c.dtype, batch=c.n, pixels=c.in_h * c.in_w, channels=c.c, input=source, output=output,
        )  # fmt: skip
        launches += library.launch("launch_global_avg_pool2d", args)
        assert_near(output, expected, near)
        output = result(emulator, shape, c.dtype, c.shifted == "result")

    geometry = dict(batch=c.n, channels=c.c, in_h=c.in_h, in_w=c.in_w, out_h=shape[2], out_w=shape[3])
    for name in ("kernel", "stride", "pad"):
        geometry |= {f"{name}_h": getattr(c, name)[0], f"{name}_w": getattr(c, name)[1]}
    geometry |= dict(dilation_h=1, dilation_w=1) if not c.output_size else {}
    options = dict(geometry=geometry, dtype=c.dtype, count_include_pad=c.count_include_pad, divisor=c.divisor)
    if output.numel() > 0 and input.numel() > 0:
        args = library.struct("AvgPool2dArgs", **options, source=source, result=output)
        launches += library.launch("launch_avg_pool2d", args)
        assert_near(output, expected, near)
    if input.numel() > 0:
        grad = draw(shape, c.dtype)
        grad_input = result(emulator, tuple(input.shape), c.dtype, c.shifted == "result")
        grad_source = place(emulator, grad, c.shifted == "source")
        args = library.struct("AvgPool2dArgs", **options, source=grad_source, result=grad_input)
        launches += library.launch("launch_avg_pool2d_backward", args)
        exact = torch.zeros_like(input).double()
        if expected.numel() > 0:
            (exact,) = torch.autograd.grad(expected, exact_input, grad.double())
        assert_near(grad_input, exact, tolerance(16, c.dtype))
    return launches
