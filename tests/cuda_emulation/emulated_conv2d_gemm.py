"""conv2d's implicit GEMM: the three passes, by FMA and by tensor cores."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import product

import conv2d_cases
import torch
from conv2d_cases import DTYPES, KINDS, PASSES, Case, compute, draw_rest, draw_window
from emulated_kernels import Cell, Kernel, Mutation
from emulation import Emulator, Launch

KERNELS = [
    Kernel(
        "conv2d_gemm_fma_kernel",
        "conv2d_gemm.cuh",
        [
            Mutation("race", "Tile::put(shared, (step + 1) % 2,", "Tile::put(shared, step % 2,"),
            Mutation("unwritten", "tile.multiply(shared, step % 2)", "tile.multiply(shared, (step + 1) % 2)"),
            Mutation(
                "unwritten",
                "(step + 1) % 2, staged_image, staged_matrix);\n      __syncthreads();",
                "(step + 1) % 2, staged_image, staged_matrix);",
            ),
            Mutation("arithmetic", "rows[i / kRun][i % kRun] * columns", "rows[0][i % kRun] * columns"),
            Mutation("bounds", "is_inside(y_[i] + tap.y, b_.h.image) && ", "", "conv2d_gemm_tiles.cuh"),
            Mutation(
                "bounds",
                "left = pixel < b_.depth_end ? b_.columns - k : 0;",
                "left = b_.columns - k;",
                "conv2d_gemm_tiles.cuh",
            ),
            Mutation("bounds", "if (i < left) to[i] = values[i]", "to[i] = values[i]", "conv2d_gemm_tiles.cuh"),
            Mutation(
                "bounds", "p.in_vectors = has_vectors(args, g.group_in())", "p.in_vectors = true", "conv2d_problem.h"
            ),
            Mutation("alignment", " && is_aligned(args.input)", "", "conv2d_problem.h"),
            Mutation("alignment", " && is_aligned(args.weight)", "", "conv2d_problem.h"),
            Mutation("alignment", "is_aligned(args.grad_output) && ", "", "conv2d_problem.h"),
            Mutation("alignment", " && is_aligned(args.result)", "", "conv2d_problem.h"),
            Mutation("index", "b_.part * p_.part_size + offset", "offset", "conv2d_gemm_tiles.cuh"),
            Mutation("index", "static_cast<int>(b.depth_begin) : b.row", "0 : b.row", "conv2d_gemm_tiles.cuh"),
            Mutation("index", "static_cast<int>(b.depth_begin) + Map", "Map", "conv2d_gemm_tiles.cuh"),
            Mutation("arithmetic", "if (kAlongRows || p_.depth_parts > 1)", "if (kAlongRows)", "conv2d_gemm_tiles.cuh"),
            Mutation("index", "plan.blocks *= p.depth_parts;", "", "conv2d_gemm_launch.cu"),
            Mutation(
                "index",
                "is_narrow(args) ? kernel_of<kNarrow>(args) : kernel_of<kWide>(args)",
                "kernel_of<kNarrow>(args)",
                "conv2d_gemm_launch.cu",
            ),
            Mutation("index", "if (!grad_weight && alone)", "if (!grad_weight)", "conv2d_gemm_launch.cu"),
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
            Mutation("index", "threadIdx.x / 32 % kWarpsN * (kFragmentsN", "threadIdx.x / 64 * (kFragmentsN"),
            Mutation("index", "threadIdx.x / 32 / kWarpsN * (kFragmentsM", "threadIdx.x / 64 * (kFragmentsM"),
            Mutation("index", "kAlongRows ? nvcuda::wmma::mem_col_major", "kAlongRows ? nvcuda::wmma::mem_row_major"),
            Mutation("arithmetic", "rounded(staged[i])", "staged[i]"),
            Mutation("alignment", "kResultPitch = kFragment + 4", "kResultPitch = kFragment + 2"),
            Mutation("race", "float* room = shared.result[threadIdx.x / 32];", "float* room = shared.result[0];"),
            Mutation("race", "        __syncwarp();\n        float run[kRun];", "        float run[kRun];"),
            Mutation(
                "race",
                "        __syncwarp();\n        const int row = warp_row()",
                "        const int row = warp_row()",
            ),
        ],
    ),
]
TILES = ("several tiles of columns", "several tiles of rows", "several parts")


def kernel_of(capability: int, tf32: bool, dtype: torch.dtype) -> str:
    """Name the kernel that a device runs."""
    modern = capability >= 80 and (dtype == torch.bfloat16 or (dtype == torch.float32 and tf32))
    return f"conv2d_gemm_{'wmma' if modern or dtype == torch.float16 else 'fma'}_kernel"


CELLS = conv2d_cases.CELLS | {
    (kernel_of(*kind), kind[2], which, tiles) for kind, which, tiles in product(KINDS, PASSES, TILES)
}


def configurations(rng: random.Random) -> Iterator[Case]:
    """Channels about the vectors' and the tiles' widths, positions about the tiles' heights."""
    yield from conv2d_cases.chosen(16, 16, groups=2)
    for (capability, tf32, dtype), which in product(KINDS, PASSES):  # several tiles, and a depth of several parts
        c, k = {"forward": (8, 72), "grad_input": (72, 8), "grad_weight": (24, 72)}[which]
        window = dict(stride=(1, 2), dilation=(1, 2)) if which == "grad_input" else {}
        yield Case(
            which, dtype, n=2, c=c, k=k, size=(17, 17), kernel=(2, 3), padding=(1, 1), capability=capability,
            tf32=tf32, **window,
        )  # fmt: skip
    for (capability, tf32, dtype), which, (n, size, shifted) in product(
        KINDS, PASSES[:2], ((1, (5, 6), ""), (1, (5, 6), "result"), (2, (9, 8), ""))
    ):
        c, k = (40, 24) if which == "forward" else (24, 80)  # a stride leaves phases with parts of no terms
        yield Case(
            which, dtype, n=n, c=c, k=k, size=size, kernel=(3, 3), padding=(1, 1), relu=True, capability=capability,
            tf32=tf32, stride=(1, 1) if which == "forward" else (2, 2), shifted=shifted,
        )  # fmt: skip
    for which, dtype in product(PASSES, DTYPES):  # no whole vectors
        yield Case(which, dtype, n=1, c=5, k=7, size=(5, 6), kernel=(3, 2), padding=(1, 1), capability=80)
    for i in range(144):
        for which in PASSES:
            groups = rng.choice([1, 1, 1, 2, 3])
            channels = [rng.choice([1, 3, 5, 8, 8, 16, 16, 17, 24, 40]), rng.choice([1, 4, 7, 8, 16, 24, 32, 33])]
            if rng.random() < 0.1:
                groups, channels[rng.randint(0, 1)] = 1, rng.choice([63, 64, 65, 72, 136])
            yield Case(
                n=rng.randint(1, 3), c=channels[0] * groups, k=channels[1] * groups, groups=groups,
                **draw_rest(rng, which, i), **draw_window(rng, 7),
            )  # fmt: skip


def cells(case: Case, launches: list[Launch]) -> set[Cell]:
    """Name what a case covers."""
    group_in, group_out = case.c // case.groups, case.k // case.groups
    kernel = kernel_of(case.capability, case.tf32, case.dtype)
    height = 64 if case.dtype == torch.float64 else 128  # of a tile, whose width is 64, or 32 where that is enough
    columns = group_in if case.which == "grad_input" else group_out
    blocks, rows = case.groups * -(-columns // 64), case.n * math.prod(case.out_size)
    if case.which == "grad_input":  # phases have blocks of their own
        blocks *= min(case.stride[0], case.size[0]) * min(case.stride[1], case.size[1])
        rows = case.n * math.prod(-(-size // stride) for size, stride in zip(case.size, case.stride, strict=True))
    elif case.which == "grad_weight":
        rows = math.prod(case.kernel) * group_in
    tiles = {"several tiles of columns"} if columns > 64 else set()
    if case.which == "grad_weight" or len(launches) == 1:
        tiles |= {"several tiles of rows"} if rows > height else set()
        tiles |= {"several parts"} if launches[0].grid[0] > blocks * -(-rows // height) else set()
    elif launches[0].grid[0] > blocks:
        tiles.add("several tiles of rows")
    found = conv2d_cases.cells(case, launches, (group_in, group_out))
    return found | {(kernel, case.dtype, case.which, name) for name in tiles}


def check(emulator: Emulator, case: Case) -> list[Launch]:
    """Run a case, on the kernel that its dtype and capability ask for."""
    launches = compute(emulator, "gemm", case)
    assert {launch.kernel for launch in launches} == {kernel_of(case.capability, case.tf32, case.dtype)}
    return launches
