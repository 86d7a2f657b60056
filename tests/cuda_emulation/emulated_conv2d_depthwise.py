"""Depthwise convolution: the output and the input's gradient by one kernel, the weight's gradient by another."""

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
        "conv2d_depthwise_kernel",
        "conv2d_depthwise.cuh",
        [
            Mutation(
                "bounds",
                "if (!is_inside(iy, h.image) || !is_inside(ix, w.image)) continue;\n        const T* from",
                "const T* from",
            ),
            Mutation("bounds", "if (first + i >= positions) break;", ""),
            Mutation(
                "unwritten", "__syncthreads();\n    for (int t = 0; t < count; ++t)", "for (int t = 0; t < count; ++t)"
            ),
            Mutation(
                "race",
                "__syncthreads();\n    for (int i = threadIdx.x; i < count",
                "for (int i = threadIdx.x; i < count",
            ),
            Mutation(
                "barrier",
                "first_tap < taps; first_tap += kDepthwiseTaps",
                "first_tap < taps && first < positions; first_tap += kDepthwiseTaps",
            ),
            Mutation("index", "t / w.taps * h.kernel_step", "t / w.taps"),
            Mutation(
                "arithmetic",
                "finish(sums[i][e], to_compute(bias[e]), p.relu)",
                "finish(sums[i][e], Compute<T>(0), p.relu)",
            ),
            Mutation("geometry", "static_cast<unsigned>(plan.blocks);", "0;", "conv2d_depthwise_launch.cu"),
            Mutation(
                "bounds",
                "p.in_vectors = has_vectors(args, g.in_channels)",
                "p.in_vectors = true",
                "conv2d_depthwise_launch.cu",
            ),
        ],
    ),
    Kernel(
        "conv2d_depthwise_grad_weight_kernel",
        "conv2d_depthwise.cuh",
        [
            Mutation(
                "index",
                "begin + slice; pixel < end; pixel += p.block_slices",
                "begin + slice; pixel < end; pixel += p.block_slices + 1",
            ),
            Mutation("unwritten", "__syncthreads();\n    const int block_channels", "const int block_channels"),
            Mutation(
                "race",
                "for (int t = 0; t < kDepthwiseGradTaps; ++t) {\n    __syncthreads();",
                "for (int t = 0; t < kDepthwiseGradTaps; ++t) {",
            ),
            Mutation("bounds", "first_tap + t >= p.kernel_row || ", ""),
            Mutation(
                "index",
                "static_cast<int64_t>(part) * channels + first_channel",
                "static_cast<int64_t>(0) * channels + first_channel",
            ),
            Mutation("arithmetic", "to_compute(vec[e]) * to_compute(grad[e])", "to_compute(vec[e])"),
        ],
    ),
]
CELLS = conv2d_cases.CELLS | set(product(PASSES, DTYPES, ("several blocks of channels",)))


def configurations(rng: random.Random) -> Iterator[Case]:
    """Channels about the vectors' widths and more than a block takes."""
    yield from conv2d_cases.chosen(16, 16, groups=16)
    for dtype, which in product(DTYPES, PASSES):
        yield Case(which, dtype, n=1, c=264, k=264, groups=264, size=(5, 4), kernel=(3, 2), padding=(1, 0))
    for i in range(172):
        for which in PASSES:
            channels = rng.choice([2, 3, 7, 8, 8, 16, 16, 17, 24, 33, 64, 136])
            yield Case(
                n=rng.randint(1, 3), c=channels, k=channels, groups=channels,
                **draw_rest(rng, which, i), **draw_window(rng, 13),
            )  # fmt: skip


def cells(case: Case, launches: list[Launch]) -> set[Cell]:
    """Name what a case covers."""
    wide = case.c * case.dtype.itemsize > 32 * 16  # 32 vectors a block
    found = {(case.which, case.dtype, "several blocks of channels")} if wide else set()
    return found | conv2d_cases.cells(case, launches, (case.c, case.k))


def check(emulator: Emulator, case: Case) -> list[Launch]:
    """Run a case."""
    launches = compute(emulator, "depthwise", case)
    suffix = "grad_weight_kernel" if case.which == "grad_weight" else "kernel"
    assert {launch.kernel for launch in launches} == {f"conv2d_depthwise_{suffix}"}
    return launches
