"""grad_output through a fused ReLU with its sums, and sums of parts."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from conditions import relative_error, tolerance
from conv2d_cases import DTYPES
from emulated_kernels import Cell, Kernel, Mutation
from emulation import Emulator, Launch

KERNELS = [
    Kernel(
        "conv2d_grad_output_kernel",
        "conv2d_sums.cuh",
        [
            Mutation("arithmetic", "(v * kLanes + e) & 1) == 0", "(v * kLanes + e) & 1) != 0"),
            Mutation("index", "row * mask_row + c / kMaskLanes", "row * mask_row"),
            Mutation(
                "bounds",
                "const int64_t mask_row = (a.channels + kMaskLanes - 1)",
                "const int64_t mask_row = (a.channels + kMaskLanes)",
            ),
            Mutation("unwritten", "sums[e];\n  __syncthreads();", "sums[e];"),
            Mutation("bounds", "if (first_channel + i >= a.channels) break;", ""),
            Mutation("index", "row += slices", "row += 2 * slices"),
            Mutation(
                "geometry",
                "static_cast<unsigned>(conv2d_grad_output_parts(args) * p.tiles)",
                "0",
                "conv2d_sums_launch.cu",
            ),
            Mutation(
                "bounds", "is_aligned(args.channels * element_bytes(args.dtype)) && ", "", "conv2d_sums_launch.cu"
            ),
            Mutation("alignment", " && is_aligned(args.grad_output)", "", "conv2d_sums_launch.cu"),
            Mutation("alignment", " && is_aligned(args.grad)", "", "conv2d_sums_launch.cu"),
        ],
    ),
    Kernel(
        "conv2d_sum_parts_kernel",
        "conv2d_sums.cuh",
        [
            Mutation("bounds", "part < a.count && i < a.size", "part < a.count"),
            Mutation("unwritten", "shared[slice][column] = sum;\n  __syncthreads();", "shared[slice][column] = sum;"),
            Mutation(
                "arithmetic",
                "for (int s = 1; s < kPartsSlices; ++s) sum +=",
                "for (int s = 2; s < kPartsSlices; ++s) sum +=",
            ),
            Mutation("index", "part += kPartsSlices", "part += kPartsSlices + 1"),
            Mutation("index", "[i % a.channels]", "[0]"),
            Mutation("arithmetic", "finish(sum, bias, a.relu)", "finish(sum, bias, false)"),
            Mutation(
                "geometry",
                "static_cast<unsigned>((args.size + kPartsColumns - 1) / kPartsColumns)",
                "0",
                "conv2d_sums_launch.cu",
            ),
        ],
    ),
]
ASKED = ((True, True), (True, False), (False, True))  # a copy, sums
CELLS: set[Cell] = {
    *product(DTYPES, (False, True), ASKED),
    *product(DTYPES, ("vectors", "several blocks of channels", "several parts"), (False, True)),
    *product(DTYPES, ("shifted",), ("grad_output", "grad")),
    *product(DTYPES, ("bias", ""), ("relu", "")),
}


@dataclass(frozen=True)
class Case:
    """What backward asks of grad_output [rows, channels].

    The `shifted` tensor, or "all", begins one element behind the alignment of vectors.
    """

    dtype: torch.dtype
    rows: int
    channels: int
    masked: bool
    copied: bool
    summed: bool
    shifted: str = ""
    bias: bool = False  # and a ReLU, behind the sum of the parts
    relu: bool = False

    def offset(self, name: str) -> int:
        """How many bytes a tensor of the dtype begins behind a multiple of 64."""
        return self.dtype.itemsize if self.shifted in (name, "all") else 0


def configurations(rng: random.Random) -> Iterator[Case]:
    """Channels about a byte of the mask and what a block takes, rows about a part."""
    for shifted, dtype in product(("", "grad_output", "grad"), DTYPES):
        yield Case(dtype, 70, 24, masked=True, copied=True, summed=True, shifted=shifted)
    for i in range(228):
        rows = rng.choice([1, 2, 63, 64, 65, 130, 600]) if i % 41 else 1024 * 64 + 70
        channels = rng.choice([1, 3, 7, 8, 9, 16, 24, 40, 65, 260, 300]) if rows < 1000 else 1
        copied, summed = ASKED[i % len(ASKED)]
        yield Case(
            DTYPES[i % len(DTYPES)], rows, channels, masked=rng.random() < 0.7, copied=copied, summed=summed,
            shifted=rng.choice(["", "", "", "grad_output", "grad", "all"]), bias=rng.random() < 0.5,
            relu=rng.random() < 0.5,
        )  # fmt: skip


def cells(case: Case, launches: list[Launch]) -> set[Cell]:
    """Name what a case covers."""
    whole, blocks = case.channels * case.dtype.itemsize % 16 == 0, -(-case.channels // 256)
    found: set[Cell] = {(case.dtype, case.masked, (case.copied, case.summed))}
    if case.summed:
        found.add((case.dtype, "bias" if case.bias else "", "relu" if case.relu else ""))
    found.add((case.dtype, "several blocks of channels", blocks > 1))
    found.add((case.dtype, "several parts", launches[0].grid[0] > blocks))
    if not case.shifted:
        found.add((case.dtype, "vectors", whole))
    elif whole and case.copied:
        found.add((case.dtype, "shifted", case.shifted))
    return found


def check(emulator: Emulator, case: Case) -> list[Launch]:
    """Mask, copy and sum; the parts of the sums are then added."""
    library = emulator.library("conv2d_sums")
    shape, dtype = (case.rows, case.channels), case.dtype
    grad = torch.randn(shape, dtype=torch.float64).to(dtype)
    passes = torch.randint(0, 2, (case.rows, -(-case.channels // 8) * 8), dtype=torch.uint8)
    bits = (passes.view(case.rows, -1, 8) << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    grad[0, 0] = float("nan") if case.masked and passes[0, 0] == 0 else 1.0  # where masked, whatever it is
    expected = torch.where(passes[:, : case.channels].bool(), grad, 0) if case.masked else grad

    given = {"grad_output": emulator.tensor(grad, offset=case.offset("grad_output"), name="grad_output")}
    if case.masked:
        given["activated"] = emulator.tensor(bits, name="activated")
    copy = emulator.empty(shape, dtype, offset=case.offset("grad"), name="grad")
    if case.copied:
        given["grad"] = copy
    args = library.struct("Conv2dGradOutputArgs", dtype=dtype, rows=case.rows, channels=case.channels, **given)
    count = library.call("conv2d_grad_output_parts", ctypes.byref(args), restype=ctypes.c_int64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    parts = emulator.empty((count, case.channels), wide, name="parts")
    if case.summed:
        args.sums = parts.data_ptr()
    launches = library.launch("launch_conv2d_grad_output", args)
    if case.copied:
        assert torch.equal(copy, expected)
    if not case.summed:
        return launches

    sums = emulator.empty((case.channels,), dtype, offset=case.offset("sums"), name="sums")
    exact = expected.double().sum(0)
    end: dict[str, object] = {"relu": case.relu}
    if case.bias:  # of as many channels as lie twice in a part, where that may be
        repeats = 2 - case.channels % 2
        bias = torch.randn(case.channels // repeats, dtype=torch.float64).to(dtype)
        end |= {"bias": emulator.tensor(bias, name="bias"), "channels": len(bias)}
        exact = exact + bias.double().repeat(repeats)
    args = library.struct(
        "Conv2dSumPartsArgs", dtype=dtype, count=count, size=case.channels, parts=parts, sums=sums, **end
    )
    launches = launches + library.launch("launch_conv2d_sum_parts", args)
    error = relative_error(sums, exact.relu() if case.relu else exact)
    assert error <= tolerance(case.rows, dtype), f"error {error} of sums"
    return launches
