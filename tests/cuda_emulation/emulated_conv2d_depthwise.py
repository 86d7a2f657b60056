"""Depthwise convolution: the output and the input's gradient by one kernel, the weight's gradient by another."""

from __future__ import annotations

import random
from collections.abc import Iterator

from conv2d_cases import PASSES, Case, draw_rest, draw_window, run
from emulated_kernels import Kernel
from emulation import Emulator, Launch

KERNELS = [
    Kernel("conv2d_depthwise_kernel", "conv2d_depthwise.cuh", []),
    Kernel("conv2d_depthwise_grad_weight_kernel", "conv2d_depthwise.cuh", []),
]


def configurations(rng: random.Random) -> Iterator[Case]:
    """Channels about the vectors' widths and more than a block takes."""
    for _ in range(200):
        for which in PASSES:
            channels = rng.choice([2, 3, 7, 8, 8, 16, 16, 17, 24, 33, 64, 136])
            yield Case(
                n=rng.randint(1, 3), c=channels, k=channels, groups=channels,
                **draw_rest(rng, which), **draw_window(rng, 9),
            )  # fmt: skip


def check(emulator: Emulator, case: Case) -> list[Launch]:
    """Run a case."""
    launches = run(emulator, "depthwise", case)
    suffix = "grad_weight_kernel" if case.which == "grad_weight" else "kernel"
    assert {launch.kernel for launch in launches} == {f"conv2d_depthwise_{suffix}"}
    return launches
