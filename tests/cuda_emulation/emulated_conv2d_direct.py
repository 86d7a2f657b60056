"""Direct convolution of few channels: the output and the input's gradient by one kernel, the weight's by another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product

import conv2d_cases
from conv2d_cases import DTYPES, PASSES, Case, compute, draw_rest, draw_window
from emulated_kernels import Cell, Kernel, Mutation
from emulation import Emulator, Launch

KERNELS = [
    Kernel(
        "conv2d_direct_kernel",
        "conv2d_direct.cuh",
        [
            Mutation("bounds", "const bool inside = is_inside(y, h.image) &&", "const bool inside ="),
            Mutation("index", "min(0, (h.taps - 1) * h.tap_step)", "0"),
            Mutation("race", "__syncthreads();\n    load_patch(p, t, h, w, image", "load_patch(p, t, h, w, image"),
            Mutation(
                "unwritten",
                "__syncthreads();\n      for (int d = 0; d < count; ++d)",
                "for (int d = 0; d < count; ++d)",
            ),
            Mutation("race", "__syncthreads();\n      stage.load(count", "stage.load(count"),
            Mutation("barrier", "if (t.n >= p.batch) return;", "if (t.n >= p.batch || threadIdx.x == 127) return;"),
            Mutation("index", "(quad.group - first_group) * p.chunk", "0"),
            Mutation("arithmetic", "at_.add(step,", "at_.add(1,"),
            Mutation("index", "if (y >= t.rows || x >= t.columns) continue;", ""),
            Mutation(
                "unwritten",
                "h_.size(c.tile_h)), p.patch_w",
                "h_.size(c.tile_h)) - 1, p.patch_w",
                "conv2d_direct_launch.cu",
            ),
            Mutation("geometry", "static_cast<unsigned>(plan.blocks);", "0;", "conv2d_direct_launch.cu"),
            Mutation(
                "index",
                "(c.quads + quads() - 2) / quads() + 1",
                "(c.quads + quads() - 2) / quads()",
                "conv2d_direct_launch.cu",
            ),
        ],
    ),
    Kernel(
        "conv2d_direct_grad_weight_kernel",
        "conv2d_direct.cuh",
        [
            Mutation(
                "race",
                "__syncthreads();\n    load_patch(p, t, h, w, static_cast<const T*>(p.input)",
                "load_patch(p, t, h, w, static_cast<const T*>(p.input)",
            ),
            Mutation("unwritten", "__syncthreads();\n    for (int y = 0, x = slice", "for (int y = 0, x = slice"),
            Mutation("index", "works; x += p.block_slices", "works; x += 1"),
            Mutation("bounds", "if (row + r < p.kernel_row) static_cast<C*>", "static_cast<C*>"),
            Mutation("index", "tile < p.patch_tiles; tile += p.parts", "tile < p.patch_tiles; tile += p.parts + 1"),
            Mutation("index", "p.block_slices + slice) * p.out_channels", "p.block_slices) * p.out_channels"),
        ],
    ),
]
CELLS = conv2d_cases.CELLS | set(product(PASSES[:2], DTYPES, ("blocks end within groups", "many channels")))


def configurations(rng: random.Random) -> Iterator[Case]:
    """Groups of channels about quads and vectors, and now and then more channels than a patch has room for."""
    yield from conv2d_cases.chosen(16, 16, groups=2)
    for dtype, which in product(DTYPES, PASSES):  # three quads a group
        yield Case(which, dtype, n=1, c=96, k=96, groups=8, size=(9, 8), kernel=(3, 3), padding=(1, 1))
    for i in range(172):
        for which in PASSES:
            groups = rng.choice([1, 1, 2, 3, 5, 8, 19])
            channels = [rng.choice([1, 2, 3, 4, 4, 6, 8, 8, 16]), rng.choice([1, 2, 3, 4, 4, 5, 6, 8, 8, 13])]
            window = draw_window(rng, 12)
            if i % 9 == 0 and which != "grad_weight":
                groups, channels[PASSES.index(which)] = 1, rng.choice([200, 333, 520])
                window |= dict(size=(rng.randint(11, 13), rng.randint(11, 16)), kernel=(3, 2), dilation=(3, 2))
            yield Case(
                n=rng.randint(1, 3), c=channels[0] * groups, k=channels[1] * groups, groups=groups,
                **draw_rest(rng, which, i), **window,
            )  # fmt: skip


def cells(case: Case, launches: list[Launch]) -> set[Cell]:
    """Name what a case covers."""
    channels = case.c // case.groups, case.k // case.groups
    found = conv2d_cases.cells(case, launches, channels)
    quads = -(-channels[case.which == "forward"] // 4)
    if case.which != "grad_weight" and case.groups > 1 and quads & (quads - 1):  # blocks take a power of two
        found.add((case.which, case.dtype, "blocks end within groups"))
    if case.which != "grad_weight" and channels[case.which != "forward"] >= 200:
        found.add((case.which, case.dtype, "many channels"))
    return found


def check(emulator: Emulator, case: Case) -> list[Launch]:
    """Run a case."""
    launches = compute(emulator, "direct", case)
    suffix = "grad_weight_kernel" if case.which == "grad_weight" else "kernel"
    assert {launch.kernel for launch in launches} == {f"conv2d_direct_{suffix}"}
    return launches
