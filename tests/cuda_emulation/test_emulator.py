"""The emulator itself: kernels of faults/ that are right pass, and each rule broken is reported."""

from __future__ import annotations

import os
import re
from pathlib import Path

import emulation
import numpy as np
import pytest
import torch
from emulation import EmulationError, Emulator, Library

FAULTS = {
    "read_outside_kernel": r"out of bounds: read of 4 bytes at byte 256 of input \[64\], which has 256",
    "write_outside_kernel": r"out of bounds: write of 4 bytes at byte 256 of output \[64\], which has 256",
    "write_input_kernel": r"write to input \[64\], which is an input",
    "misaligned_kernel": r"misaligned: access of 8 bytes",
    "unwritten_kernel": r"thread \(3, 0, 0\): read of shared memory \(byte 12 of tile\) that nobody wrote",
    "unwritten_later_kernel": r"nobody wrote in this block",
    "read_write_race_kernel": r"race",
    "write_write_race_kernel": r"race: write of shared memory .* after a write by thread \d+ since",
    "other_warp_race_kernel": r"race|nobody wrote",
    "missing_syncwarp_kernel": r"race|nobody wrote",
    "atomic_race_kernel": r"race: (read|atomic) of shared memory \(byte \d of count\) after a (read|atomic) by thread",
    "unwritten_atomic_kernel": r"nobody wrote in this block",
    "returned_barrier_kernel": r"not all threads reach the same barrier: threads 0-4: waits in __syncthreads at "
    r"faults_launch.cu:\d+; threads 5-5: has returned; threads 6-63: waits",
    "divergent_barrier_kernel": r"not all threads reach the same barrier: threads 0-6: .*; threads 7-63: ",
    "missing_lane_kernel": r"threads 0-8: waits in __shfl_sync at .*; threads 9-9: has returned",
    "wrong_lane_kernel": r"different collectives|shuffles from lane 17, which is not in the mask 0000ffff",
    "absent_lane_kernel": r"lane 0 calls __shfl_sync without being in its mask|different collectives",
    "unrounded_kernel": r"was not rounded by __float_to_tf32",
    "unsynchronised_matrix_kernel": r"race: read of shared memory .* after a write by warp \d since",
}


@pytest.fixture(scope="module")
def library(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return emulator.of(Path(__file__).parent / "faults", tmp_path_factory.mktemp("faults")).library("faults")


def run(
    library: Library, kernel: str, source: torch.Tensor, threads: int = 64, blocks: int = 1, seed: int = 0
) -> torch.Tensor:
    """What a kernel makes of `source`."""
    data = library.emulator.tensor(source)
    output = library.emulator.empty(source.shape, torch.float32)
    sizes = {"blocks": blocks, "threads": threads}
    args = library.struct("FaultsArgs", input=data, output=output, kernel=kernel.encode(), **sizes)
    launches = library.launch("launch_faults", args, seed)
    assert [(launch.kernel, launch.grid, launch.block) for launch in launches] == [
        (kernel, (blocks, 1, 1), (threads, 1, 1))
    ]
    return output


@pytest.mark.parametrize("threads", [1, 31, 64, 1000, 1024])
def test_emulator_orders_shared_memory_by_barriers(library: Library, threads: int) -> None:
    source = torch.randn(threads)
    for seed in range(5):
        assert torch.equal(run(library, "reverse_kernel", source, threads, 3, seed), source.flip(0))


def test_emulator_runs_warp_collectives(library: Library) -> None:
    source = torch.randint(-9, 9, (64,)).float()
    sums = source.view(2, 32).sum(1) + (source.view(2, 32) > 0).sum(1)
    assert torch.equal(run(library, "warp_sum_kernel", source), sums.repeat_interleave(32))
    assert torch.equal(run(library, "warp_reverse_kernel", source).view(2, 32), source.view(2, 32).flip(1))
    assert torch.equal(run(library, "count_kernel", source), (64 + (source > 0).sum()).expand(64).float())


@pytest.mark.parametrize(
    ("kernel", "dtype"), [("half_kernel", torch.float16), ("bfloat16_kernel", torch.bfloat16), ("tf32_kernel", None)]
)
def test_emulator_multiplies_matrices(library: Library, kernel: str, dtype: torch.dtype | None) -> None:
    source = torch.randn(16, 16)
    rounded = source.to(dtype).double() if dtype else tf32(source).double()
    output = run(library, kernel, source, 32)
    assert (output - rounded @ rounded.T).abs().max() < 1e-5
    assert dtype or not torch.equal(rounded.float(), source)


def tf32(x: torch.Tensor) -> torch.Tensor:
    """To 10 bits of mantissa, ties away from zero."""
    bits = x.numpy().view(np.uint32)
    return torch.from_numpy(((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32))


@pytest.mark.parametrize(
    ("kernel", "dtype"), [("round_half_kernel", torch.float16), ("round_bfloat16_kernel", torch.bfloat16)]
)
def test_emulator_rounds_to_half_types_as_torch(library: Library, kernel: str, dtype: torch.dtype) -> None:
    exact = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype).float()
    ties = (exact + exact.roll(-1)) / 2  # of neighbours
    for source in (exact, ties, ties * (1 + 2**-20), torch.randn(1 << 16).exp() ** 8):
        output = run(library, kernel, source, 1024, 64)
        assert torch.allclose(output, source.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(emulation.BUILD != "checked", reason="what checker.cpp reports")
@pytest.mark.parametrize("kernel", FAULTS)
def test_emulator_reports_fault(library: Library, kernel: str) -> None:
    one_warp = kernel in ("unrounded_kernel", "unsynchronised_matrix_kernel", "unwritten_later_kernel")
    blocks = 9 if kernel == "unwritten_later_kernel" else 1
    with pytest.raises(EmulationError, match=rf"^{kernel}, block .*{FAULTS[kernel]}"):
        run(library, kernel, torch.randn(256 if one_warp else 64), 32 if one_warp else 64, blocks)
    source = torch.randn(64)
    assert torch.equal(run(library, "reverse_kernel", source), source.flip(0))  # as if nothing had happened


def test_emulator_refuses_launches_that_no_gpu_takes(library: Library) -> None:
    for threads, blocks in [(1025, 1), (0, 1), (32, 0), (32, 1 << 31)]:
        with pytest.raises(EmulationError, match="too_many_threads_kernel: no such launch"):
            run(library, "too_many_threads_kernel", torch.zeros(1), threads, blocks)


@pytest.mark.skipif(emulation.BUILD != "checked", reason="what checker.cpp reports")
def test_emulator_names_the_line_of_a_fault(library: Library) -> None:
    text = (Path(__file__).parent / "faults/cuda/faults_launch.cu").read_text()
    line = text[: text.index("args.input[threadIdx.x + 1]")].count("\n") + 1
    with pytest.raises(EmulationError, match=rf"\(faults_launch.cu:{line}\b"):
        run(library, "read_outside_kernel", torch.zeros(64))


SANITIZED = {
    "read_outside_kernel": "AddressSanitizer: use-after-poison",
    "write_outside_kernel": "AddressSanitizer: use-after-poison",
    "shared_outside_kernel": "global-buffer-overflow|insufficient space",
    "local_outside_kernel": "AddressSanitizer: stack-buffer-overflow|index 64 out of bounds",
    "overflow_kernel": "signed integer overflow",
    "misaligned_kernel": "misaligned address",
}


@pytest.mark.skipif(emulation.BUILD != "address", reason="what the sanitizers report: test_sanitizers.py runs this")
@pytest.mark.parametrize("kernel", SANITIZED)
def test_sanitizer_reports_fault(library: Library, kernel: str, tmp_path: Path) -> None:
    process = os.fork()
    if process == 0:  # which the report ends
        os.dup2(os.open(tmp_path / "report", os.O_WRONLY | os.O_CREAT), 2)
        run(library, kernel, torch.randn(64))
        os._exit(0)
    assert os.waitpid(process, 0)[1] != 0
    assert re.search(SANITIZED[kernel], (tmp_path / "report").read_text())
