"""What the emulated tests of pooling share: dense NHWC images in guarded memory, and how far results may be off.

And what they share with other kernels over rows of channels: the tilings that they cover.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from itertools import product

import torch
from emulated_kernels import Cell
from emulation import Emulator, Launch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# About the vectors of 2, 4 and 8 channels, and about one block of their threads.
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24)


def draw(shape: tuple[int, ...], dtype: torch.dtype, kind: str = "normal") -> Tensor:
    """An NCHW tensor in channels_last: "normal", "ties" of few integers, or "specials", many NaN and infinities."""
    values = torch.randn(shape, dtype=torch.float64)
    if kind == "ties":
        values = values.round()
    if kind == "specials":
        chosen = torch.rand(shape)
        values[chosen < 0.2] = math.nan
        values[(chosen > 0.2) & (chosen < 0.5)] = -math.inf
        values[(chosen > 0.5) & (chosen < 0.6)] = math.inf
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def place(emulator: Emulator, image: Tensor, shifted: bool = False) -> Tensor:
    """The image [n, c, h, w] where kernels may read it as [n, h, w, c], `shifted` off the alignment of vectors."""
    offset = image.element_size() if shifted else 0
    return emulator.tensor(image.permute(0, 2, 3, 1).contiguous(), offset=offset)


def result(emulator: Emulator, shape: tuple[int, ...], dtype: torch.dtype, shifted: bool = False) -> Tensor:
    """Memory for an image [n, c, h, w], which kernels write as [n, h, w, c]; the tensor is NCHW."""
    n, c, h, w = shape
    offset = dtype.itemsize if shifted else 0
    return emulator.empty((n, h, w, c), dtype, offset=offset).permute(0, 3, 1, 2)


def sizes(rng: random.Random) -> dict[str, int]:
    """A small image's batch, channels and sizes."""
    return dict(
        n=rng.choice([1, 1, 2, 3]),
        c=rng.choice(CHANNELS),
        in_h=rng.randint(1, 9),
        in_w=rng.randint(1, 9),
    )


def assert_near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Finite values differ by at most `tolerance` times the largest one; NaN and infinity are where expected."""
    got, expected = got.double(), expected.detach().double()
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got[got.isinf()], expected[got.isinf()]) and torch.equal(got.isinf(), expected.isinf())
    finite = expected.isfinite()
    if finite.any():
        scale = max(float(expected[finite].abs().max()), 1e-6)
        worst = float((got - expected)[finite].abs().max()) / scale
        assert worst <= tolerance, f"off by {worst:.3g} of the largest, more than {tolerance:.3g}"


def tilings(dtype: torch.dtype, launches: list[Launch], units: dict[str, int]) -> set[Cell]:
    """Kernels with the dtype, whether rows are aligned, and whether a row of so many units takes several blocks."""
    return {
        (launch.kernel, dtype, launch.aligned, units[launch.kernel] > launch.block[0])
        for launch in launches
        if launch.kernel in units
    }


def all_tilings(kernels: Iterable[str], aligned: tuple[bool | None, ...] = (False, True)) -> set[Cell]:
    """All that `tilings` may give."""
    return set(product(kernels, DTYPES, aligned, (False, True)))
