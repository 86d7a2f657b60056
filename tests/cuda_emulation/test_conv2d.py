"""conv2d's emulated kernels where generated configurations do not look: other capabilities' code, NaN, equal bits."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice, product

import emulated_conv2d_direct
import emulated_conv2d_gemm
import pytest
import torch
from conv2d_cases import DTYPES, PASSES, Case, compute, execute
from emulation import Emulator


@pytest.mark.parametrize("arch", [750, 900])
def test_conv2d_gemm_code_of_a_capability_covers_what_its_launcher_asks_for(arch: int, emulator: Emulator) -> None:
    kernels = set()
    for dtype, which, tf32, (c, k) in product(DTYPES, PASSES, (False, True), ((16, 24), (40, 48))):
        case = Case(
            which, dtype, n=2, c=c, k=k, size=(9, 8), kernel=(3, 3), stride=(2, 1), padding=(1, 1),
            capability=arch // 10, tf32=tf32,
        )  # fmt: skip
        kernels |= {(launch.kernel, dtype) for launch in compute(emulator, "gemm", case, arch)}
    half_by_cores = {(f"conv2d_gemm_{'fma' if arch < 800 else 'wmma'}_kernel", torch.bfloat16)}
    always = {("conv2d_gemm_wmma_kernel", torch.float16), ("conv2d_gemm_fma_kernel", torch.float64)}
    assert kernels >= half_by_cores | always
    assert (("conv2d_gemm_wmma_kernel", torch.float32) in kernels) == (arch >= 800)


@pytest.mark.parametrize("algorithm", ["gemm", "direct", "depthwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_conv2d_relu_keeps_nan_and_cuts_the_rest(algorithm: str, dtype: torch.dtype, emulator: Emulator) -> None:
    groups = 8 if algorithm == "depthwise" else 1
    case = Case("forward", dtype, n=1, c=8, k=8, size=(6, 7), kernel=(3, 3), padding=(1, 1), groups=groups, relu=True)
    tensors = case.draw()
    tensors["input"][0, 2, 3, 5] = float("nan")
    result, _ = execute(emulator, algorithm, case, tensors)
    reached = torch.zeros(6, 7, dtype=torch.bool)
    reached[1:4, 2:5] = True
    nan = result[0].isnan()
    assert nan[reached].any(-1).all() and not nan[~reached].any()
    assert (result[~result.isnan()] >= 0).all()


@pytest.mark.parametrize("algorithm", ["gemm", "direct", "depthwise"])
def test_conv2d_weight_gradient_of_infinity_stays_in_its_channel(algorithm: str, emulator: Emulator) -> None:
    # Positions that fill up a tile must not meet the infinity: zero times infinity is NaN.
    groups = 8 if algorithm == "depthwise" else 1
    for size in ((5, 7), (9, 11), (3, 13)):
        case = Case("grad_weight", torch.float32, n=2, c=8, k=8, size=size, kernel=(3, 2), groups=groups)
        tensors = case.draw()
        tensors["input"][1, size[0] - 1, size[1] - 1, 6] = float("inf")
        result, _ = execute(emulator, algorithm, case, tensors)
        total = result.sum(0)
        if groups == 1:
            assert not total[..., 6][:, 2, 1].isfinite().any()
            total[..., 6] = 0
        else:
            assert not total[6, 2, 1].isfinite().any()
            total[6] = 0
        assert total.isfinite().all(), size
        # Only the last tap meets the last pixel.
        assert int((~result.sum(0).isfinite()).sum()) == (8 if groups == 1 else 1)


@pytest.mark.parametrize("which", PASSES[:2])
def test_conv2d_gemm_of_an_image_is_the_same_in_any_batch_where_asked(which: str, emulator: Emulator) -> None:
    for invariant in (True, False):
        case = Case(
            which, torch.float32, n=3, c=40, k=40, size=(4, 5), kernel=(3, 3), padding=(1, 1), batch_invariant=invariant
        )
        tensors = case.draw()
        alone = tensors | {name: tensors[name][:1] for name in ("input", "grad_output")}
        together, launches = execute(emulator, "gemm", case, tensors)
        single, single_launches = execute(emulator, "gemm", replace(case, n=1), alone)
        parts = [launches[0].grid[0], single_launches[0].grid[0]]
        assert torch.equal(together[:1], single) if invariant else min(parts) > 1
        assert parts == [1, 1] or not invariant


@pytest.mark.parametrize("module", [emulated_conv2d_gemm, emulated_conv2d_direct])
def test_conv2d_gives_the_same_bits_in_any_order_of_blocks(module: object, emulator: Emulator) -> None:
    algorithm = module.__name__.removeprefix("emulated_conv2d_")  # type: ignore[attr-defined]
    for case in islice(module.configurations(random.Random(5)), 72, 102):  # type: ignore[attr-defined]
        tensors = case.draw()
        first, second = (execute(emulator, algorithm, case, tensors, seed=seed)[0] for seed in (1, 2))
        assert torch.equal(first.view(torch.uint8), second.view(torch.uint8)), case
