"""Direct convolution of few channels: the output and the input's gradient by one kernel, the weight's by another."""

from __future__ import annotations

import random
from collections.abc import Iterator

from conv2d_cases import PASSES, Case, draw_rest, draw_window, run
from emulated_kernels import Kernel
from emulation import Emulator, Launch

KERNELS = [
    Kernel("conv2d_direct_kernel", "conv2d_direct.cuh", []),
    Kernel("conv2d_direct_grad_weight_kernel", "conv2d_direct.cuh", []),
]


def configurations(rng: random.Random) -> Iterator[Case]:
    """Groups of channels about quads and vectors, and now and then more channels than a patch has room for."""
    for i in range(200):
        for which in PASSES:
            groups = rng.choice([1, 1, 2, 3, 5, 8, 19])
            channels = [rng.choice([1, 2, 3, 4, 4, 6, 8, 8, 16]), rng.choice([1, 2, 3, 4, 4, 5, 6, 8, 8, 13])]
            window = draw_window(rng, 12)
            if i % 10 == 0 and which != "grad_weight":
                groups, channels[PASSES.index(which)] = 1, rng.choice([200, 333, 520])
                window |= dict(size=(rng.randint(11, 13), rng.randint(11, 16)), kernel=(3, 2), dilation=(3, 2))
            yield Case(
                n=rng.randint(1, 3), c=channels[0] * groups, k=channels[1] * groups, groups=groups,
                **draw_rest(rng, which), **window,
            )  # fmt: skip


def check(emulator: Emulator, case: Case) -> list[Launch]:
    """Run a case."""
    launches = run(emulator, "direct", case)
    suffix = "grad_weight_kernel" if case.which == "grad_weight" else "kernel"
    assert {launch.kernel for launch in launches} == {f"conv2d_direct_{suffix}"}
    return launches
