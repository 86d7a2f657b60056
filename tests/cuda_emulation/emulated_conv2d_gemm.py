"""conv2d's implicit GEMM: the three passes, by FMA and by tensor cores."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from conv2d_cases import PASSES, Case, compute, draw_rest, draw_window
from emulated_kernels import Kernel, Mutation
from emulation import Emulator, Launch

KERNELS = [
    Kernel(
        "conv2d_gemm_fma_kernel",
        "conv2d_gemm.cuh",
        [
            Mutation("race", "Tile::put(shared, (step + 1) % 2,", "Tile::put(shared, step % 2,"),
            Mutation("unwritten", "tile.multiply(shared, step % 2)", "tile.multiply(shared, (step + 1) % 2)"),
            Mutation("arithmetic", "rows[i / kRun][i % kRun] * columns", "rows[0][i % kRun] * columns"),
            Mutation("bounds", "is_inside(y_[i] + tap.y, b_.h.image) && ", "", "conv2d_gemm_tiles.cuh"),
            Mutation(
                "bounds",
                "left = pixel < b_.depth_end ? b_.columns - k : 0;",
                "left = b_.columns - k;",
                "conv2d_gemm_tiles.cuh",
            ),
            Mutation("bounds", "if (i < left) to[i] = from_compute", "to[i] = from_compute", "conv2d_gemm_tiles.cuh"),
            Mutation(
                "bounds", "p.in_vectors = has_vectors(args, g.group_in())", "p.in_vectors = true", "conv2d_problem.h"
            ),
            Mutation("index", "static_cast<int64_t>(b_.part) * p_.out_channels +", "", "conv2d_gemm_tiles.cuh"),
            Mutation("index", "kernel_step = a.stride / divisor", "kernel_step = a.stride", "conv2d_window.cuh"),
            Mutation("arithmetic", "/ divisor + 1;", "/ divisor;", "conv2d_problem.h"),
            Mutation("arithmetic", "value < 0 ? C(0)", "value > 0 ? C(0)", "conv2d_window.cuh"),
            Mutation("geometry", "static_cast<unsigned>(made.blocks)", "0u", "conv2d_gemm_launch.cu"),
        ],
    ),
    Kernel(
        "conv2d_gemm_wmma_kernel",
        "conv2d_gemm.cuh",
        [
            Mutation(
                "index",
                "kIsAlongDepth, wmma::row_major, wmma::col_major>",
                "kIsAlongDepth, wmma::col_major, wmma::row_major>",
            ),
            Mutation("index", "threadIdx.x / 32 % 2 * (kFragmentsN", "threadIdx.x / 64 * (kFragmentsN"),
            Mutation("index", "kAlongRows ? nvcuda::wmma::mem_col_major", "kAlongRows ? nvcuda::wmma::mem_row_major"),
            Mutation("arithmetic", "rounded(staged[i])", "staged[i]"),
            Mutation("alignment", "kResultPitch = kFragment + 4", "kResultPitch = kFragment + 2"),
            Mutation("race", "float* room = shared.result[threadIdx.x / 32];", "float* room = shared.result[0];"),
        ],
    ),
]


def configurations(rng: random.Random) -> Iterator[Case]:
    """Channels about the vectors' and the tiles' widths, positions about the tiles' heights."""
    for _ in range(200):
        for which in PASSES:
            groups = rng.choice([1, 1, 1, 2, 3])
            channels = [rng.choice([1, 3, 5, 8, 8, 16, 16, 17, 24]), rng.choice([1, 4, 7, 8, 16, 16, 24])]
            if rng.random() < 0.1:
                groups, channels[rng.randint(0, 1)] = 1, rng.choice([63, 64, 65, 72, 136])
            yield Case(
                n=rng.randint(1, 3), c=channels[0] * groups, k=channels[1] * groups, groups=groups,
                **draw_rest(rng, which), **draw_window(rng, 7),
            )  # fmt: skip


def check(emulator: Emulator, case: Case) -> list[Launch]:
    """Run a case, on the kernel that its dtype and capability ask for."""
    launches = compute(emulator, "gemm", case)
    modern = case.capability >= 80 and (case.dtype == torch.bfloat16 or (case.dtype == torch.float32 and case.tf32))
    wanted = "wmma" if modern or case.dtype == torch.float16 else "fma"
    assert {launch.kernel for launch in launches} == {f"conv2d_gemm_{wanted}_kernel"}
    return launches
