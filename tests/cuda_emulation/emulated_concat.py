"""concat's kernel: runs of tensors joined in every row, in the widest unit that sizes and addresses allow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from emulated_kernels import Cell, Kernel, Mutation
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
            Mutation("alignment", "16 | reinterpret_cast<uintptr_t>(args.output) |", "16 |", "concat_launch.h"),
            Mutation(
                "alignment",
                "bits |= reinterpret_cast<uintptr_t>(input.data) | static_cast<uint64_t>(",
                "bits |= static_cast<uint64_t>(",
                "concat_launch.h",
            ),
        ],
    )
]
UNITS = (16, 8, 4, 2, 1)  # bytes that a thread moves at a time
SHIFTED = ("inputs", "last", "output")
CELLS: set[Cell] = {("unit", unit) for unit in UNITS} | set(product(SHIFTED, UNITS[1:]))


@dataclass(frozen=True)
class Configuration:
    """Runs of `widths` units of `unit` bytes in each of `rows`.

    Addresses of `shifted`, all "inputs", the "last" or the "output", are `offset` bytes off a multiple of 64.
    """

    rows: int
    unit: int
    widths: tuple[int, ...]
    offset: int
    shifted: str = "inputs"

    @property
    def moved(self) -> int:
        """Bytes that a thread may move at a time."""
        sizes = (*(width * self.unit for width in self.widths), self.offset)
        return next(unit for unit in UNITS if all(n % unit == 0 for n in sizes))


def configurations(rng: random.Random) -> Iterator[Configuration]:
    """Every unit at sizes about the edges, then random ones."""
    for unit in (1, 2, 4, 8, 16):
        for rows, widths in [(1, [1]), (1, [3, 1]), (5, [2, 7]), (33, [1] * 64), (4, [300, 1, 129]), (3, [700, 1400])]:
            yield Configuration(rows, unit, tuple(widths), 0)
    for offset in (8, 4, 2, 1, 3, 5):
        for shifted in SHIFTED:
            yield Configuration(3, 16, (2, 1), offset, shifted)
    for _ in range(180):
        widths = tuple(rng.randint(1, 40) for _ in range(rng.choice([1, 2, 3, 5, 64])))
        offset, shifted = rng.choice([0, 0, 0, 8, 4, 6, 1]), rng.choice(SHIFTED)
        yield Configuration(rng.randint(1, 40), rng.choice(UNITS), widths, offset, shifted)


def cells(c: Configuration, launches: list[Launch]) -> set[Cell]:
    """Name what a configuration covers."""
    return {("unit", c.moved)} | ({(c.shifted, c.moved)} if c.offset else set())


def check(emulator: Emulator, c: Configuration) -> list[Launch]:
    """Run a configuration, and compare it bit by bit."""
    library = emulator.library("concat")
    run_bytes = [width * c.unit for width in c.widths]
    sources = [torch.randint(0, 256, (c.rows, n), dtype=torch.uint8) for n in run_bytes]
    moved = {"inputs": range(len(sources)), "last": [len(sources) - 1], "output": []}[c.shifted]
    inputs = [emulator.tensor(source, offset=c.offset if i in moved else 0) for i, source in enumerate(sources)]
    offset = c.offset if c.shifted == "output" else 0
    output = emulator.empty((c.rows, sum(run_bytes)), torch.uint8, offset=offset)
    parts, place = [], 0
    for data, n in zip(inputs, run_bytes, strict=True):
        parts.append({"data": data, "run_bytes": n, "offset": place})
        place += n
    args = library.struct("ConcatArgs", output=output, rows=c.rows, row_bytes=place, count=len(inputs), inputs=parts)
    launches = library.launch("launch_concat", args)
    assert torch.equal(output, torch.cat(sources, 1))
    return launches
