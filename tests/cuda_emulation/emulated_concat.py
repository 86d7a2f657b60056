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
            Mutation("index", "out[i / run * row + i % run]", "out[i / run * run + i % run]"),
            Mutation("index", "in[i / run * stride + i % run]", "in[i]"),
            Mutation("index", "k += gridDim.y", "k += gridDim.y + 1"),
            Mutation("index", "input = p.table[k];", "input = p.table[k % kMaxConcatInputs];"),
            Mutation("bounds", "i < total", "i <= total"),
            Mutation("index", "p.output + input.offset", "p.output"),
            Mutation("index", "gridDim.x) * blockDim.x;", "gridDim.x + 1) * blockDim.x;"),
            Mutation("geometry", "grid(blocks,", "grid(0 * blocks,", "concat_launch.cu"),
            Mutation("bounds", "uint64_t bits = 16 |", "return 16; uint64_t bits = 16 |", "concat_launch.cu"),
            Mutation("alignment", "16 | reinterpret_cast<uintptr_t>(args.output) |", "16 |", "concat_launch.cu"),
            Mutation(
                "alignment",
                "bits |= reinterpret_cast<uintptr_t>(input.data) |",
                "bits |=",
                "concat_launch.cu",
            ),
            Mutation("index", "input.run_bytes | input.stride_bytes |", "input.run_bytes |", "concat_launch.cu"),
        ],
    )
]
UNITS = (16, 8, 4, 2, 1)  # bytes that a thread moves at a time
SHIFTED = ("inputs", "last", "output")
CELLS: set[Cell] = {
    *product(("unit", "strided", "table"), UNITS),
    *product(SHIFTED, UNITS[1:]),
    *product(("strided unlike the unit",), UNITS[1:]),
}


@dataclass(frozen=True)
class Configuration:
    """Runs of `widths` units of `unit` bytes in each of `rows`.

    Addresses of `shifted`, all "inputs", the "last" or the "output", are `offset` bytes off a multiple of 64. The rows
    of the inputs are `gap` bytes apart.
    """

    rows: int
    unit: int
    widths: tuple[int, ...]
    offset: int
    shifted: str = "inputs"
    gap: int = 0

    @property
    def moved(self) -> int:
        """Bytes that a thread may move at a time."""
        sizes = (*(width * self.unit for width in self.widths), self.offset, self.gap)
        return next(unit for unit in UNITS if all(n % unit == 0 for n in sizes))


def configurations(rng: random.Random) -> Iterator[Configuration]:
    """Every unit at sizes about the edges, then random ones."""
    for unit in (1, 2, 4, 8, 16):
        for rows, widths in [(1, [1]), (1, [3, 1]), (5, [2, 7]), (33, [1] * 64), (4, [300, 1, 129]), (3, [700, 1400])]:
            yield Configuration(rows, unit, tuple(widths), 0)
    for offset in (8, 4, 2, 1, 3, 5):
        for shifted in SHIFTED:
            yield Configuration(3, 16, (2, 1), offset, shifted)
    for unit in UNITS:
        yield Configuration(5, unit, (3, 2, 9), 0, gap=4 * unit)
        yield Configuration(5, 16, (3, 2, 9), 0, gap=unit)
        yield Configuration(3, unit, (1, 2, 3) * 44, 0)
    for _ in range(180):
        widths = tuple(rng.randint(1, 40) for _ in range(rng.choice([1, 2, 3, 5, 64, 65])))
        offset, shifted = rng.choice([0, 0, 0, 8, 4, 6, 1]), rng.choice(SHIFTED)
        gap = rng.choice([0, 0, 16, 32, 8, 4, 3])
        yield Configuration(rng.randint(1, 40), rng.choice(UNITS), widths, offset, shifted, gap)


def cells(c: Configuration, launches: list[Launch]) -> set[Cell]:
    """Name what a configuration covers."""
    found: set[Cell] = {("unit", c.moved)}
    if c.offset:
        found.add((c.shifted, c.moved))
    if c.gap:
        found.add(("strided", c.moved))
    if c.gap % c.unit and not c.offset:
        found.add(("strided unlike the unit", c.moved))
    if len(c.widths) > 64:
        found.add(("table", c.moved))
    return found


def check(emulator: Emulator, c: Configuration) -> list[Launch]:
    """Run a configuration, and compare it bit by bit."""
    library = emulator.library("concat")
    run_bytes = [width * c.unit for width in c.widths]
    sources = [torch.randint(0, 256, (c.rows, n), dtype=torch.uint8) for n in run_bytes]
    moved = {"inputs": range(len(sources)), "last": [len(sources) - 1], "output": []}[c.shifted]
    table, alive, place = [], [], 0
    for i, (source, n) in enumerate(zip(sources, run_bytes, strict=True)):
        spaced = source.new_empty(c.rows, n + c.gap)[:, :n].copy_(source)
        alive.append(emulator.tensor(spaced, offset=c.offset if i in moved else 0))
        table.append([alive[-1].data_ptr(), n, n + c.gap, place])
        place += n
    output = emulator.empty((c.rows, place), torch.uint8, offset=c.offset if c.shifted == "output" else 0)
    inputs = torch.tensor(table)
    given = {"table": emulator.tensor(inputs, name="table")} if len(table) > 64 else {}
    args = library.struct(
        "ConcatArgs", output=output, rows=c.rows, row_bytes=place, count=len(table), inputs=inputs, **given
    )
    launches = library.launch("launch_concat", args)
    assert len(launches) == 1
    assert torch.equal(output, torch.cat(sources, 1))
    return launches
