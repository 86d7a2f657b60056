"""batch_norm's kernels: the batch's statistics, the normalisation with ReLU, residual and mask, and the gradients."""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from conditions import tolerance
from emulated_kernels import Cell, Kernel, Mutation
from emulated_relu_mask import bits
from emulation import Emulator, Launch
from images import DTYPES, all_tilings, assert_near, tilings
from torch import Tensor

KERNELS = [
    Kernel(
        "batch_norm_stats_kernel",
        "batch_norm.cuh",
        [
            Mutation("arithmetic", "shift[i] - shift[i] == 0 ? shift[i] : C(0)", "C(0)"),
            Mutation("arithmetic", "square[i] += count * distance * distance", "square[i] += distance * distance"),
            Mutation("bounds", "if (i >= channels) continue;", ""),
            Mutation("race", "  __syncthreads();  // before `shared` is written again\n", "", "lanes.cuh"),
        ],
    ),
    Kernel(
        "batch_norm_moments_kernel",
        "batch_norm.cuh",
        [
            Mutation("arithmetic", "(is_last ? last : whole) * distance", "whole * distance"),
            Mutation("arithmetic", "static_cast<C>(mean - static_cast<double>(rounded))", "C(0)"),
            Mutation("bounds", "if (threadIdx.y != 0 || !inside) return;\n  const C rounded", "const C rounded"),
        ],
    ),
    Kernel(
        "batch_norm_apply_kernel",
        "batch_norm.cuh",
        [
            Mutation("arithmetic", "y[i] <= 0 ? C(0) : y[i]", "y[i] > 0 ? y[i] : C(0)"),
            Mutation("index", "row * args.geometry.mask_stride + at.unit] =", "row * args.geometry.mask_stride] ="),
            Mutation("unwritten", "  __syncthreads();\n  if (channels <= 0) return;", "  if (channels <= 0) return;"),
            Mutation(
                "barrier",
                "  __syncthreads();\n  if (channels <= 0) return;",
                "if (channels <= 0) return;\n  __syncthreads();",
            ),
            Mutation("index", "row * args.residual_stride + channel", "row * args.input_stride + channel"),
            Mutation(
                "alignment",
                "is_aligned_rows(args.dtype, args.residual, args.residual_stride)",
                "true",
                "batch_norm_launch.cu",
            ),
        ],
    ),
    Kernel(
        "batch_norm_grad_sums_kernel",
        "batch_norm.cuh",
        [
            Mutation("arithmetic", "bits >> i & 1 ? grad[i] : C(0)", "grad[i]"),
            Mutation("arithmetic", "product[i] += grad[i] * (x[i] - mean[i])", "product[i] += grad[i] * x[i]"),
            Mutation("index", "products = sums + tiling.tiles_y * args.geometry.channels", "products = sums"),
        ],
    ),
    Kernel(
        "batch_norm_grad_factors_kernel",
        "batch_norm.cuh",
        [
            Mutation("arithmetic", "-scale / spread * product / rows", "scale / spread * product / rows"),
            Mutation("index", "tile += blockDim.y) sum[0]", "tile += blockDim.y + 1) sum[0]"),
        ],
    ),
    Kernel(
        "batch_norm_grad_input_kernel",
        "batch_norm.cuh",
        [
            Mutation("index", "load_lanes(factors + 2 * all", "load_lanes(factors + 3 * all"),
            Mutation(
                "bounds",
                "is_aligned_rows(args.dtype, args.grad_residual, g.channels)",
                "true",
                "batch_norm_launch.cu",
            ),
        ],
    ),
    Kernel(
        "batch_norm_update_kernel",
        "batch_norm.cuh",
        [
            Mutation("bounds", "if (i >= 2 * args.channels) return;", ""),
            Mutation("arithmetic", "is_mean ? args.take_mean : args.take_var", "args.take_mean"),
        ],
    ),
]
OF_ROWS = (
    "batch_norm_stats_kernel",
    "batch_norm_apply_kernel",
    "batch_norm_grad_sums_kernel",
    "batch_norm_grad_input_kernel",
)
OF_CHANNELS = ("batch_norm_moments_kernel", "batch_norm_grad_factors_kernel", "batch_norm_update_kernel")
CELLS = all_tilings(OF_ROWS) | all_tilings(OF_CHANNELS, aligned=(None,))


@dataclass(frozen=True)
class Configuration:
    """Rows of channels; `apart` elements lie between rows, twice as many between the input's.

    The `shifted` tensor is off the vectors' alignment.

    `offset` is the mean of the input's channels, of which one holds `special`.
    """

    dtype: torch.dtype
    rows: int
    channels: int
    training: bool = True
    params: torch.dtype | None = None  # of weight, bias and the running statistics; None: dtype
    affine: str = "both"  # "both", "weight", "bias" or "none"
    residual: bool = False
    relu: bool = False
    apart: int = 0
    shifted: str = ""
    offset: float = 0.0
    special: float = 0.0
    wanted: tuple[bool, bool, bool, bool] = (True, True, True, True)
    eps: float = 1e-5


def configurations(rng: random.Random) -> Iterator[Configuration]:
    """Chosen sizes in every dtype, then random ones."""
    for dtype in DTYPES:
        for channels in (1, 8, 9, 12, 20, 40):
            yield Configuration(dtype, 37, channels, residual=True, relu=True)
            yield Configuration(dtype, 21, channels, training=False, residual=True, relu=True, apart=3)
        yield Configuration(dtype, 300, 275, relu=True)  # several blocks of channels, and tiles of rows
        yield Configuration(dtype, 40, 264, residual=True, relu=True)  # several blocks of aligned channels
        yield Configuration(dtype, 1, 16, training=False, residual=True, relu=True)
        # Of the tensors whose rows lie apart, only the input is aligned.
        yield Configuration(dtype, 11, 16, residual=True, relu=True, apart=8 // dtype.itemsize)
        yield Configuration(dtype, 150, 16, offset=1000.0 if dtype.itemsize > 2 else 8.0)
        yield Configuration(dtype, 9, 16, special=math.inf)
        yield Configuration(dtype, 9, 16, relu=True, special=math.nan)
        for shifted in ("input", "residual", "output", "grad_output", "grad_input", "grad_residual"):
            yield Configuration(dtype, 11, 16, residual=True, relu=True, shifted=shifted)
    yield Configuration(torch.float16, 4600, 250)  # more tiles than a block has threads for, and than there may be
    for _ in range(150):
        dtype = rng.choice(DTYPES)
        yield Configuration(
            dtype,
            rows=rng.choice([2, 3, 5, 20, 70]),
            channels=rng.choice([1, 2, 3, 7, 8, 9, 16, 17, 24, 33, 64]),
            training=rng.random() < 0.6,
            params=rng.choice([None, torch.float32]) if dtype.itemsize == 2 else None,
            affine=rng.choice(["both", "both", "weight", "bias", "none"]),
            residual=rng.random() < 0.5,
            relu=rng.random() < 0.6,
            apart=rng.choice([0, 0, 8, 5]),
            offset=rng.choice([0.0, 0.0, 5.0]),
            wanted=rng.choice([(True,) * 4, (True, False, False, False), (False, True, False, True)]),
            eps=rng.choice([1e-5, 1e-3, 0.1]),
        )


def cells(c: Configuration, launches: list[Launch]) -> set[Cell]:
    """Name what a configuration covers."""
    units = dict.fromkeys(OF_ROWS, -(-c.channels // 8)) | dict.fromkeys(OF_CHANNELS, c.channels)
    units["batch_norm_update_kernel"] = 2 * c.channels  # means and variances
    return tilings(c.dtype, launches, units)


class Case:
    """A configuration's tensors, and where kernels may see them."""

    def __init__(self, emulator: Emulator, c: Configuration) -> None:
        self.emulator, self.library, self.c = emulator, emulator.library("batch_norm"), c
        self.params = c.params or c.dtype
        shape = (c.rows, c.channels)
        values = 1.5 * torch.randn(shape, dtype=torch.float64) + c.offset
        if c.special:
            values[1, c.channels // 2] = c.special
        self.input = values.to(c.dtype)
        self.residual = torch.randn(shape).to(c.dtype) if c.residual else None
        self.grad_output = torch.randn(shape).to(c.dtype)
        self.weight = torch.randn(c.channels).to(self.params) if c.affine in ("both", "weight") else None
        self.bias = torch.randn(c.channels).to(self.params) if c.affine in ("both", "bias") else None
        self.running_mean = torch.randn(c.channels).to(self.params)
        self.running_var = (torch.rand(c.channels) + 0.5).to(self.params)
        self.compute = torch.float64 if c.dtype == torch.float64 else torch.float32
        self.geometry = dict(rows=c.rows, channels=c.channels, mask_stride=-(-c.channels // 8))
        self.near = tolerance(64, c.dtype) * (1 if c.dtype.itemsize == 2 else 1 + abs(c.offset))
        self.launches: list[Launch] = []

    def launch(self, op: str, struct: str, **fields: Any) -> None:
        args = self.library.struct(struct, geometry=self.geometry, dtype=self.c.dtype, **fields)
        self.launches += self.library.launch(op, args)

    def rows(self, name: str, source: Tensor) -> tuple[Tensor, int]:
        """The rows, apart, and their stride; the input's differs from the others'."""
        gap = 2 * self.c.apart if name == "input" else self.c.apart
        apart = torch.full((self.c.rows, self.c.channels + gap), math.nan, dtype=source.dtype)
        apart[:, : self.c.channels] = source
        offset = source.element_size() if self.c.shifted == name else 0
        return self.emulator.tensor(apart, offset=offset), apart.stride(0)

    def result(self, name: str) -> Tensor:
        offset = self.c.dtype.itemsize if self.c.shifted == name else 0
        return self.emulator.empty((self.c.rows, self.c.channels), self.c.dtype, offset=offset)

    def values(self, t: Tensor | None, stride: int = 1) -> dict[str, Any]:
        """A value a channel, as ChannelValues."""
        if t is None:
            return {}
        apart = torch.full((len(t), stride), math.nan, dtype=t.dtype)
        apart[:, 0] = t
        return dict(data=self.emulator.tensor(apart), dtype=t.dtype, stride=stride)

    def channels(self, dtype: torch.dtype) -> Tensor:
        return self.emulator.empty((self.c.channels,), dtype)

    def workspace(self) -> Tensor:
        """The reductions' workspace."""
        geometry = self.library.struct("BatchNormGeometry", **self.geometry)
        tiles = self.library.call("batch_norm_tiles", ctypes.byref(geometry), restype=ctypes.c_int64)
        return self.emulator.empty((2, tiles, self.c.channels), torch.float64)


def check(emulator: Emulator, c: Configuration) -> list[Launch]:
    """Normalise, take the gradients, and move the running statistics."""
    case = Case(emulator, c)
    if c.training:
        mean, rest, var = check_moments(case)
    else:
        mean, rest, var = case.running_mean, None, case.running_var
    mask = check_apply(case, mean, rest, var)
    check_backward(case, mean, var, mask)
    check_update(case, mean, var)
    return case.launches


def check_moments(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    mean, rest, var = (case.channels(case.compute) for _ in range(3))
    input, stride = case.rows("input", case.input)
    case.launch(
        "launch_batch_norm_moments", "BatchNormMomentsArgs",
        input=input, stride=stride, partial=case.workspace(), mean=mean, mean_rest=rest, var=var,
    )  # fmt: skip
    exact = case.input.double().numpy().astype(np.longdouble)  # float64 may lose as much as the kernel
    with np.errstate(invalid="ignore"):
        exact_mean, exact_var = (torch.from_numpy(f(exact, 0).astype(np.float64)) for f in (np.mean, np.var))
    scale = torch.finfo(case.compute).eps
    spread = exact_var.nan_to_num(1).sqrt()
    finite = exact_mean.isfinite()
    # The mean and its rest hold more digits than the mean; neither loses any to a mean far from zero.
    error = (mean.double() + rest.double() - exact_mean).abs()
    allowed = 8 * scale * spread + 8 * torch.finfo(torch.float64).eps * exact_mean.abs()
    assert bool((error <= allowed)[finite].all()), float((error / allowed)[finite].max())
    assert torch.equal(mean.double()[~finite].nan_to_num(0.5), exact_mean[~finite].nan_to_num(0.5))
    assert torch.equal(var.isnan(), exact_var.isnan())
    assert bool(((var / exact_var - 1).abs() < 32 * scale)[finite].all())
    return mean, rest, var


def normalised(case: Case, input: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """The definition in float64, before the ReLU."""
    output = (input - mean.double()) / (var.double() + case.c.eps).sqrt()
    output = output if case.weight is None else output * case.weight.double()
    output = output if case.bias is None else output + case.bias.double()
    return output if case.residual is None else output + case.residual.double()


def exact_statistics(case: Case, input: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    return (input.mean(0), input.var(0, correction=0)) if case.c.training else (mean, var)


def check_apply(case: Case, mean: Tensor, rest: Tensor | None, var: Tensor) -> Tensor | None:
    """Return the mask of a ReLU."""
    c = case.c
    exact = case.input.double()
    before = normalised(case, exact, *exact_statistics(case, exact, mean, var))
    expected = F.relu(before) if c.relu else before
    input, stride = case.rows("input", case.input)
    fields: dict[str, Any] = dict(input=input, input_stride=stride, eps=c.eps, relu=c.relu)
    if case.residual is not None:
        fields["residual"], fields["residual_stride"] = case.rows("residual", case.residual)
    fields |= dict(weight=case.values(case.weight, 2), bias=case.values(case.bias), mean=case.values(mean))
    fields |= dict(var=case.values(var), mean_rest=case.values(rest))
    for mask in (None, case.emulator.empty((c.rows, -(-c.channels // 8)), torch.uint8)):
        output = case.result("output")
        given = {} if mask is None else {"mask": mask}
        case.launch("launch_batch_norm_apply", "BatchNormApplyArgs", output=output, **given, **fields)
        assert_near(output, expected, case.near)
        if not c.relu:
            return None
    assert mask is not None
    # A bit may differ where rounding decides about zero.
    sure = before.isnan() | (before.abs() > case.near * expected[expected.isfinite()].abs().max())
    got = (mask[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1).view(c.rows, -1)
    assert torch.equal(got[:, : c.channels][sure], (~(before <= 0)).to(torch.uint8)[sure])
    assert not got[:, c.channels :].any()
    return bits(got[:, : c.channels])


def check_backward(case: Case, mean: Tensor, var: Tensor, mask: Tensor | None) -> None:
    c, emulator = case.c, case.emulator
    passes = torch.ones(c.rows, c.channels)
    if mask is not None:
        passes = (mask[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1).view(c.rows, -1)[:, : c.channels]
    exact = case.input.double().requires_grad_()
    weight = torch.ones(c.channels) if case.weight is None else case.weight
    leaves = [exact, weight.double().requires_grad_(), torch.zeros(c.channels).double().requires_grad_()]
    statistics = exact_statistics(case, exact, mean, var)
    output = (exact - statistics[0]) / (statistics[1] + c.eps).sqrt() * leaves[1] + leaves[2]
    grad = torch.where(passes.bool(), case.grad_output.double(), 0.0)
    expected = [*torch.autograd.grad(output, leaves, grad), grad]

    given = {} if mask is None else {"mask": emulator.tensor(mask)}
    input, input_stride = case.rows("input", case.input)
    grad_output, grad_stride = case.rows("grad_output", case.grad_output)
    both = dict(grad_output=grad_output, grad_stride=grad_stride, input_stride=input_stride, **given)
    reduces = c.wanted[1] or c.wanted[2] or c.training
    fields: dict[str, Any] = {}
    if reduces:
        partial = fields["partial"] = case.workspace()
        case.launch(
            "launch_batch_norm_grad_sums", "BatchNormGradSumsArgs",
            input=input, mean=case.values(mean), partial=partial, **both,
        )  # fmt: skip
    results = [case.channels(case.params) if wanted else None for wanted in c.wanted[1:3]]
    for name, t in zip(("grad_weight", "grad_bias"), results, strict=True):
        if t is not None:
            fields[name] = dict(data=t, dtype=t.dtype, stride=1)
    factors = emulator.empty((4, c.channels), case.compute)
    case.launch(
        "launch_batch_norm_grad_factors", "BatchNormGradFactorsArgs",
        mean=case.values(mean), var=case.values(var), weight=case.values(case.weight), eps=c.eps, factors=factors,
        **fields,
    )  # fmt: skip
    fields = {} if not (c.training and c.wanted[0]) else {"input": input}
    grad_input, grad_residual = (
        case.result(name) if wanted else None
        for name, wanted in (("grad_input", c.wanted[0]), ("grad_residual", c.wanted[3]))
    )
    fields |= {} if grad_input is None else {"grad_input": grad_input}
    fields |= {} if grad_residual is None else {"grad_residual": grad_residual}
    case.launch("launch_batch_norm_grad_input", "BatchNormGradInputArgs", factors=factors, **fields, **both)
    near = 8 * case.near + 2 * torch.finfo(case.params).eps
    for got, wanted in zip((grad_input, *results, grad_residual), expected, strict=True):
        if got is not None:
            assert_near(got, wanted, near)


def check_update(case: Case, mean: Tensor, var: Tensor) -> None:
    take = 0.1, 0.1 * 5 / 4
    fields: dict[str, Any] = {}
    before = dict(running_mean=case.running_mean, running_var=case.running_var)
    moved = {name: case.emulator.tensor(t[:, None].repeat(1, 2), writable=True) for name, t in before.items()}
    for name, t in moved.items():
        fields[name] = dict(data=t, dtype=case.params, stride=2)
    args = case.library.struct(
        "BatchNormUpdateArgs",
        channels=case.c.channels, mean=case.values(mean), var=case.values(var), keep=0.9, take_mean=take[0],
        take_var=take[1], wide=case.compute == torch.float64, **fields,
    )  # fmt: skip
    case.launches += case.library.launch("launch_batch_norm_update", args)
    for (name, t), share, batch in zip(before.items(), take, (mean, var), strict=True):
        assert_near(moved[name][:, 0], 0.9 * t.double() + share * batch.double(), 4 * torch.finfo(case.params).eps)
        assert torch.equal(moved[name][:, 1], t)
