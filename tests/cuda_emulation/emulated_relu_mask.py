"""relu_mask's kernel: the bits of a ReLU's output."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from emulated_kernels import Cell, Kernel, Mutation
from emulation import Emulator, Launch
from images import DTYPES, all_tilings, tilings
from torch import Tensor

KERNELS = [
    Kernel(
        "relu_mask_kernel",
        "relu_mask.cuh",
        [
            Mutation("index", "row * tiling.units + at.unit", "row * tiling.units"),
            Mutation("bounds", "if (channels <= 0) return;", ""),
            Mutation("arithmetic", "values[i] <= 0 ? 0u : 1u << i", "values[i] > 0 ? 1u << i : 0u", "bit_mask.cuh"),
            Mutation("alignment", "is_aligned(args.output) && ", "", "relu_mask_launch.cu"),
            Mutation(
                "alignment",
                " && is_aligned(args.channels * element_bytes(args.dtype))",
                "",
                "relu_mask_launch.cu",
            ),
        ],
    )
]
CELLS = all_tilings(["relu_mask_kernel"])


@dataclass(frozen=True)
class Configuration:
    """A ReLU's output of `rows` of `channels`, `shifted` off the vectors' alignment."""

    dtype: torch.dtype
    rows: int
    channels: int
    shifted: bool


def configurations(rng: random.Random) -> Iterator[Configuration]:
    """Channels about bytes and blocks."""
    for dtype in DTYPES:
        for channels in (1, 7, 8, 9, 12, 16, 20, 63, 64, 65, 300, 2055, 2056):
            yield Configuration(dtype, 5, channels, False)
        yield Configuration(dtype, 300, 16, True)
    for _ in range(160):
        yield Configuration(rng.choice(DTYPES), rng.randint(1, 40), rng.randint(1, 70), rng.random() < 0.2)


def cells(c: Configuration, launches: list[Launch]) -> set[Cell]:
    """Name what a configuration covers."""
    return tilings(c.dtype, launches, {"relu_mask_kernel": -(-c.channels // 8)})


def bits(passes: Tensor) -> Tensor:
    """Bit k % 8 of byte k / 8 for channel k of [rows, channels]."""
    rows, channels = passes.shape
    padded = torch.zeros(rows, -(-channels // 8) * 8, dtype=torch.uint8)
    padded[:, :channels] = passes
    return (padded.view(rows, -1, 8) << torch.arange(8, dtype=torch.uint8)).sum(-1).to(torch.uint8)


def check(emulator: Emulator, c: Configuration) -> list[Launch]:
    """Take the mask of an output with zeros, NaN and infinities."""
    library = emulator.library("relu_mask")
    values = torch.tensor([0.0, -0.0, 1.5, math.nan, math.inf, -1.0])
    output = values[torch.randint(0, len(values), (c.rows, c.channels))].to(c.dtype)
    mask = emulator.empty((c.rows, -(-c.channels // 8)), torch.uint8)
    source = emulator.tensor(output, offset=output.element_size() if c.shifted else 0)
    args = library.struct("ReluMaskArgs", dtype=c.dtype, rows=c.rows, channels=c.channels, output=source, mask=mask)
    launches = library.launch("launch_relu_mask", args)
    assert torch.equal(mask, bits(~(output <= 0)))
    return launches
