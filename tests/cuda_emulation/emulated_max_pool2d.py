"""max_pool2d's kernels: values, winners, indices, the gradient, and the values at the winners."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product

import torch
import torch.nn.functional as F
from conditions import tolerance
from emulated_kernels import Cell, Kernel, Mutation
from emulation import Emulator, Launch
from images import DTYPES, all_tilings, assert_near, draw, place, result, sizes, tilings
from torch import Tensor

KERNELS = [
    Kernel(
        "max_pool2d_kernel",
        "max_pool2d.cuh",
        [
            Mutation("arithmetic", "x[i] > best[i] ||", "x[i] >= best[i] ||"),
            Mutation("arithmetic", " || x[i] != x[i]", ""),
            Mutation("index", "(row + cols.begin + kw * g.dilation_w)", "(row + cols.begin + kw)"),
            Mutation("bounds", "if (!at.inside) return;\n  const PoolWindow", "const PoolWindow"),
            Mutation("index", "static_cast<Bytes>(offsets[i]) << (8 * i)", "static_cast<Bytes>(offsets[i]) << (4 * i)"),
            Mutation(
                "geometry", "return dim3(static_cast<unsigned>(tiles_x * tiles_y));", "return dim3(0);", "tiling.h"
            ),
            Mutation(
                "bounds",
                "g.channels % kVector<T> == 0 && is_aligned(args.input)",
                "is_aligned(args.input)",
                "max_pool2d_launch.cu",
            ),
            Mutation("bounds", "is_aligned(args.output)", "true", "max_pool2d_launch.cu"),
        ],
    ),
    Kernel(
        "max_pool2d_backward_kernel",
        "max_pool2d.cuh",
        [
            Mutation("arithmetic", "winner[i] == tap ? grad[i] : Compute<T>(0)", "grad[i]"),
            Mutation("arithmetic", "sum[i] += winner", "sum[i] = winner"),
            Mutation("arithmetic", "if (kw * g.dilation_w != w) continue;", ""),
            Mutation("bounds", "is_aligned(args.grad_input)", "true", "max_pool2d_launch.cu"),
            Mutation(
                "index",
                "before > 0 ? divide_up(before, a.stride) : 0",
                "before > 0 ? before / a.stride : 1",
                "pool2d.cuh",
            ),
        ],
    ),
    Kernel(
        "max_pool2d_indices_kernel",
        "max_pool2d.cuh",
        [
            Mutation("arithmetic", "at.h * args.geometry.in_w + at.w", "at.w * args.geometry.in_h + at.h"),
            Mutation("index", "offset / kernel_w * g.dilation_h", "offset / kernel_w"),
            Mutation("index", "offsets8 != nullptr ? offsets8[i] : static_cast<uint32_t>(offsets32[i])", "offsets8[i]"),
        ],
    ),
    Kernel(
        "max_pool2d_gather_kernel",
        "max_pool2d.cuh",
        [
            Mutation("bounds", "at.h >= 0 && at.h < g.in_h && at.w >= 0 && at.w < g.in_w", "true"),
        ],
    ),
]
CELLS = all_tilings(["max_pool2d_kernel", "max_pool2d_backward_kernel"])
CELLS |= set(product(("bytes", "32 bits"), DTYPES, (False, True)))  # of offsets, with aligned rows or not


@dataclass(frozen=True)
class Configuration:
    """One pooling; the `shifted` tensor starts off the vectors' alignment: "source", "result" or "offsets"."""

    dtype: torch.dtype
    n: int
    c: int
    in_h: int
    in_w: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    ceil_mode: bool
    kind: str = "normal"
    shifted: str = ""

    def window(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """torch's values and indices."""
        return F.max_pool2d(
            tensor,
            (self.kernel_h, self.kernel_w),
            (self.stride_h, self.stride_w),
            (self.pad_h, self.pad_w),
            (self.dilation_h, self.dilation_w),
            self.ceil_mode,
            return_indices=True,
        )

    @property
    def possible(self) -> bool:
        """Whether the output has a pixel."""
        return (
            self.in_h + 2 * self.pad_h > self.dilation_h * (self.kernel_h - 1)
            and self.in_w + 2 * self.pad_w > self.dilation_w * (self.kernel_w - 1)
        )  # fmt: skip


def configurations(rng: random.Random) -> Iterator[Configuration]:
    """Chosen windows in every dtype, then random ones."""
    for dtype in DTYPES:
        for c in (1, 8, 9, 16):
            yield Configuration(dtype, 2, c, 7, 8, 3, 3, 2, 2, 1, 1, 1, 1, False, "ties")
            yield Configuration(dtype, 1, c, 9, 6, 2, 3, 3, 1, 1, 0, 2, 2, True, "specials")
        yield Configuration(dtype, 1, 8, 1, 1, 2, 2, 2, 2, 1, 1, 3, 3, True)  # a window without a pixel
        for c in (5, 8):
            yield Configuration(dtype, 1, c, 9, 9, 17, 16, 2, 1, 8, 8, 1, 1, False)  # offsets of 32 bits
        yield Configuration(dtype, 1, 8, 17, 8, 16, 16, 1, 1, 8, 8, 1, 1, False)  # the most that bytes hold
        for c in (135, 136):  # several blocks a row, the last of them with idle threads
            yield Configuration(dtype, 2, c, 5, 34, 2, 2, 2, 2, 0, 0, 1, 1, False)
        for shifted in ("source", "result", "offsets"):
            yield Configuration(dtype, 2, 16, 6, 5, 3, 3, 2, 2, 1, 1, 1, 1, False, shifted=shifted)
    count = 0
    while count < 170:
        kernel = rng.randint(1, 4), rng.randint(1, 4)
        c = Configuration(
            dtype=rng.choice(DTYPES),
            **sizes(rng),
            kernel_h=kernel[0],
            kernel_w=kernel[1],
            stride_h=rng.randint(1, 4),
            stride_w=rng.randint(1, 4),
            pad_h=rng.randint(0, kernel[0] // 2),
            pad_w=rng.randint(0, kernel[1] // 2),
            dilation_h=rng.choice([1, 1, 2, 3]),
            dilation_w=rng.choice([1, 1, 2, 3]),
            ceil_mode=rng.random() < 0.5,
            kind=rng.choice(["normal", "ties", "ties", "specials"]),
            shifted=rng.choice(["", "", "", "", "", "source", "result", "offsets"]),
        )
        if c.possible:
            count += 1
            yield c


def cells(c: Configuration, launches: list[Launch]) -> set[Cell]:
    """Name what a configuration covers."""
    pixel = -(-c.c * c.dtype.itemsize // 16)
    out_w = c.window(torch.zeros(1, 1, c.in_h, c.in_w))[0].shape[3]
    units = {"max_pool2d_kernel": out_w * pixel, "max_pool2d_backward_kernel": c.in_w * pixel}
    offsets = "bytes" if c.kernel_h * c.kernel_w <= 256 else "32 bits"
    return tilings(c.dtype, launches, units) | {
        (offsets, c.dtype, launch.aligned) for launch in launches if launch.kernel in units
    }


def check(emulator: Emulator, c: Configuration) -> list[Launch]:
    """Pool, and take every way back."""
    library = emulator.library("max_pool2d")
    input = draw((c.n, c.c, c.in_h, c.in_w), c.dtype, c.kind)
    values, indices = c.window(input.double())
    shape = tuple(values.shape)
    names = [name for name in asdict(c) if name.split("_")[0] in ("in", "kernel", "stride", "pad", "dilation")]
    geometry = {name: getattr(c, name) for name in names}
    geometry |= dict(batch=c.n, channels=c.c, out_h=shape[2], out_w=shape[3])
    launches = []

    # 1. Values, with the winners and without.
    narrow = c.kernel_h * c.kernel_w <= 256
    field = "offsets8" if narrow else "offsets32"
    source = place(emulator, input, c.shifted == "source")
    offsets = result(emulator, shape, torch.uint8 if narrow else torch.int32, c.shifted == "offsets")
    for given in ({field: offsets}, {}):
        output = result(emulator, shape, c.dtype, c.shifted == "result")
        args = library.struct("MaxPool2dArgs", geometry=geometry, dtype=c.dtype, input=source, output=output, **given)
        launches += library.launch("launch_max_pool2d", args)
        assert torch.equal(output.isnan(), values.isnan())
        assert torch.equal(output.double().nan_to_num(0.5), values.nan_to_num(0.5))

    # 2. Where the winners are.
    found = result(emulator, shape, torch.int64)
    args = library.struct("MaxPool2dIndicesArgs", geometry=geometry, indices=found, **{field: offsets})
    launches += library.launch("launch_max_pool2d_indices", args)
    assert torch.equal(found, indices)

    # 3. The gradient.
    grad = draw(shape, c.dtype)
    grad_input = result(emulator, (c.n, c.c, c.in_h, c.in_w), c.dtype, c.shifted == "result")
    args = library.struct(
        "MaxPool2dBackwardArgs",
        geometry=geometry,
        dtype=c.dtype,
        grad_output=place(emulator, grad, c.shifted == "source"),
        grad_input=grad_input,
        **{field: offsets},
    )
    launches += library.launch("launch_max_pool2d_backward", args)
    assert_near(grad_input, gradient(c, grad.double(), indices), tolerance(c.kernel_h * c.kernel_w, c.dtype))

    return launches + check_gather(emulator, c, shape, geometry)


def inside(c: Configuration, h: Tensor, w: Tensor) -> Tensor:
    return (h >= 0) & (h < c.in_h) & (w >= 0) & (w < c.in_w)


def taps(c: Configuration, shape: tuple[int, ...], offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and columns that offsets name."""
    h = torch.arange(shape[2])[:, None] * c.stride_h - c.pad_h + offsets // c.kernel_w * c.dilation_h
    w = torch.arange(shape[3]) * c.stride_w - c.pad_w + offsets % c.kernel_w * c.dilation_w
    return h, w


def gradient(c: Configuration, grad: Tensor, indices: Tensor) -> Tensor:
    """grad_output at the winners; a window without a pixel has none."""
    every = torch.arange(c.kernel_h * c.kernel_w)[:, None, None]
    has_pixel = inside(c, *taps(c, tuple(grad.shape), every)).any(0)
    flat = torch.where(has_pixel, grad, torch.zeros(())).flatten(2)
    at = torch.where(has_pixel, indices, torch.zeros((), dtype=torch.int64)).flatten(2)
    return (
        torch.zeros(c.n, c.c, c.in_h * c.in_w, dtype=torch.float64)
        .scatter_add(2, at, flat)
        .view(c.n, c.c, c.in_h, c.in_w)
    )


def check_gather(
    emulator: Emulator, c: Configuration, shape: tuple[int, ...], geometry: dict[str, int]
) -> list[Launch]:
    """Offsets that no forward gave: what lies outside the image is zero."""
    library = emulator.library("max_pool2d")
    input = draw((c.n, c.c, c.in_h, c.in_w), c.dtype, c.kind)
    offsets = torch.randint(0, min(256, 2 * c.kernel_h * c.kernel_w), shape, dtype=torch.uint8)
    output = result(emulator, shape, c.dtype)
    args = library.struct(
        "MaxPool2dGatherArgs",
        geometry=geometry,
        dtype=c.dtype,
        values=place(emulator, input),
        offsets8=place(emulator, offsets),
        output=output,
    )
    launches = library.launch("launch_max_pool2d_gather", args)
    h, w = taps(c, shape, offsets.long())
    at = (h.clamp(0, c.in_h - 1) * c.in_w + w.clamp(0, c.in_w - 1)).flatten(2)
    expected = torch.where(inside(c, h, w), input.flatten(2).gather(2, at).view(shape), torch.zeros((), dtype=c.dtype))
    assert torch.equal(output.nan_to_num(0.5), expected.nan_to_num(0.5))
    return launches
