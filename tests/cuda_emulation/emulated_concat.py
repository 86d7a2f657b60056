"""concat's kernel: runs of tensors joined in every row, in the widest unit that sizes and addresses allow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from emulated_kernels import Kernel, Mutation
from emulation import Emulator, Launch

KERNELS = [
    Kernel(
        "concat_kernel",
        "concat.cuh",
        [
            Mutation("index", "out[i / run * row + i % run] = in[i]", "out[i / run * run + i % run] = in[i]"),
            Mutation("bounds", "i < total", "i <= total"),
            Mutation("index", "args.output + input.offset", "args.output"),
            Mutation("index", "gridDim.x) * blockDim.x;", "gridDim.x + 1) * blockDim.x;"),
            Mutation("geometry", "grid(blocks_for(", "grid(0 * blocks_for(", "concat_launch.cu"),
            Mutation("bounds", "uint64_t bits = 16 |", "return 16; uint64_t bits = 16 |", "concat_launch.h"),
        ],
    )
]


@dataclass(frozen=True)
class Configuration:
    """Runs of `widths` units of `unit` bytes in each of `rows`; addresses `offset` bytes off a multiple of 64."""

    rows: int
    unit: int
    widths: tuple[int, ...]
    offset: int

    @property
    def moved(self) -> int:
        """Bytes that a thread may move at a time."""
        for unit in (16, 8, 4, 2):
            if all(n % unit == 0 for n in (*(width * self.unit for width in self.widths), self.offset)):
                return unit
        return 1


def configurations(rng: random.Random) -> Iterator[Configuration]:
    """Every unit at sizes about the edges, then random ones."""
    for unit in (1, 2, 4, 8, 16):
        for rows, widths in [(1, [1]), (1, [3, 1]), (5, [2, 7]), (33, [1] * 64), (4, [300, 1, 129]), (3, [700, 1400])]:
            yield Configuration(rows, unit, tuple(widths), 0)
    for offset in (8, 4, 2, 1, 3, 5):
        yield Configuration(3, 16, (2, 1), offset)
    for _ in range(180):
        widths = tuple(rng.randint(1, 40) for _ in range(rng.choice([1, 2, 3, 5, 64])))
        yield Configuration(rng.randint(1, 40), rng.choice([1, 2, 4, 8, 16]), widths, rng.choice([0, 0, 0, 8, 4, 6, 1]))


def check(emulator: Emulator, c: Configuration) -> list[Launch]:
    """Run a configuration, and compare it bit by bit."""
    library = emulator.library("concat")
    run_bytes = [width * c.unit for width in c.widths]
    sources = [torch.randint(0, 256, (c.rows, n), dtype=torch.uint8) for n in run_bytes]
    inputs = [emulator.tensor(source, offset=c.offset) for source in sources]
    output = emulator.empty((c.rows, sum(run_bytes)), torch.uint8)
    parts, place = [], 0
    for data, n in zip(inputs, run_bytes, strict=True):
        parts.append({"data": data, "run_bytes": n, "offset": place})
        place += n
    args = library.struct("ConcatArgs", output=output, rows=c.rows, row_bytes=place, count=len(inputs), inputs=parts)
    launches = library.launch("launch_concat", args)
    assert torch.equal(output, torch.cat(sources, 1))
    return launches
