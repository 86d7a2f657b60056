"""conv2d's implicit GEMM: the three passes, by FMA and by tensor cores."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from conv2d_cases import PASSES, Case, draw_rest, draw_window, run
from emulated_kernels import Kernel
from emulation import Emulator, Launch

KERNELS = [
    Kernel("conv2d_gemm_fma_kernel", "conv2d_gemm.cuh", []),
    Kernel("conv2d_gemm_wmma_kernel", "conv2d_gemm.cuh", []),
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
    launches = run(emulator, "gemm", case)
    modern = case.capability >= 80 and (case.dtype == torch.bfloat16 or (case.dtype == torch.float32 and case.tf32))
    wanted = "wmma" if modern or case.dtype == torch.float16 else "fma"
    assert {launch.kernel for launch in launches} == {f"conv2d_gemm_{wanted}_kernel"}
    return launches
