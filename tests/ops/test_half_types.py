"""bfloat16 and float16 in pooling, batch norm and concat: read and written as they are, computed in float32, rounded
once, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from conditions import HALF
from kernels import capabilities
from torch import Tensor

from fastcnn import backends, ops

CHANNELS = [1, 7, 16, 37, 130]  # straddle the lanes of every instruction set and blocks of four registers

# Ours, and the same in torch: of an input and a residual [n, c, h, w], weight and bias [c].
Op = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.full((x.shape[1],), 0.25, dtype=dtype), torch.full((x.shape[1],), 0.75, dtype=dtype)


OPS: dict[str, tuple[Op, Op]] = {
    "max_pool2d": (lambda x, r, w, b: ops.max_pool2d(x, 2), lambda x, r, w, b: F.max_pool2d(x, 2)),
    "max_pool2d_overlapping": (
        lambda x, r, w, b: ops.max_pool2d(x, 3, 2, 1),
        lambda x, r, w, b: F.max_pool2d(x, 3, 2, 1),
    ),
    "avg_pool2d": (lambda x, r, w, b: ops.avg_pool2d(x, 2), lambda x, r, w, b: F.avg_pool2d(x, 2)),
    "avg_pool2d_overlapping": (
        lambda x, r, w, b: ops.avg_pool2d(x, 3, 2, 1),
        lambda x, r, w, b: F.avg_pool2d(x, 3, 2, 1),
    ),
    "adaptive_avg_pool2d": (
        lambda x, r, w, b: ops.adaptive_avg_pool2d(x, (4, 3)),
        lambda x, r, w, b: F.adaptive_avg_pool2d(x, (4, 3)),
    ),
    "global_avg_pool2d": (
        lambda x, r, w, b: ops.adaptive_avg_pool2d(x, 1),
        lambda x, r, w, b: F.adaptive_avg_pool2d(x, 1),
    ),
    "batch_norm": (
        lambda x, r, w, b: ops.batch_norm(x, None, None, w, b, True),
        lambda x, r, w, b: F.batch_norm(x, None, None, w, b, True),
    ),
    "batch_norm_relu": (
        lambda x, r, w, b: ops.batch_norm_relu(x, None, None, w, b, True, residual=r),
        lambda x, r, w, b: F.relu(F.batch_norm(x, None, None, w, b, True) + r),
    ),
    "batch_norm_relu_infer": (
        lambda x, r, w, b: ops.batch_norm_relu(x, *_moments(x), w, b, False, residual=r),
        lambda x, r, w, b: F.relu(F.batch_norm(x, *_moments(x), w, b, False) + r),
    ),
    "concat": (lambda x, r, w, b: ops.concat([x, r, x], 1), lambda x, r, w, b: torch.cat([x, r, x], 1)),
}


def _inputs(channels: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(channels)
    images = [torch.randn(3, channels, 9, 8, generator=generator).to(dtype) for _ in range(2)]
    params = [torch.rand(channels, generator=generator) + 0.5, torch.randn(channels, generator=generator)]
    return [t.to(memory_format=torch.channels_last).requires_grad_() for t in images] + [
        t.requires_grad_() for t in params
    ]


def _run(op: Op, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The output, and the gradients of those inputs that it depends on, for a gradient that `dtype` holds."""
    output = op(*inputs)
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(output.dtype)
    gradients = torch.autograd.grad(output, inputs, grad_output, allow_unused=True)
    return [output.detach(), *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("capability", capabilities())
def test_half_types_round_once(capability: str, name: str, dtype: torch.dtype) -> None:
    ours, exact_op = OPS[name]
    for channels in CHANNELS:
        inputs = _inputs(channels, dtype)
        exact = [t.detach().double().requires_grad_() for t in inputs]
        with backends.cpu_capability(capability), backends.fallback(False):
            results = _run(ours, inputs, dtype)
        for result, wanted in zip(results, _run(exact_op, exact, dtype), strict=True):
            # Half a unit in the last place, and what float32 loses in sums of some hundred terms of this size.
            half = result.dtype == dtype
            rounding = 0.5 * torch.finfo(dtype).eps * wanted.abs() + torch.finfo(dtype).smallest_normal if half else 0.0
            error = (result.double() - wanted).abs() - rounding
            assert float(error.max()) <= 1e-5 * max(1.0, float(wanted.abs().max())), (channels, result.dtype)


@pytest.mark.parametrize("name", OPS)
def test_half_types_are_not_copied_to_float32(name: str) -> None:
    inputs = _inputs(64, torch.bfloat16)
    with backends.fallback(False):
        output = OPS[name][0](*inputs)
        grad_output = torch.randn_like(output)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            OPS[name][0](*inputs)
            torch.autograd.grad(output, inputs, grad_output, allow_unused=True)
    copies = [event.name for event in profile.events() if event.name in ("aten::copy_", "aten::_to_copy")]
    assert not copies


@pytest.mark.parametrize("dtype", HALF)
def test_half_types_keep_nan_and_infinity(dtype: torch.dtype) -> None:
    input = torch.randn(2, 19, 6, 6).to(dtype).to(memory_format=torch.channels_last)
    input[0, 3, 2, 2], input[1, 5, 1, 1], input[1, 18, 4, 4] = float("nan"), float("inf"), float("-inf")
    for ours, theirs in (
        (ops.max_pool2d(input, 3, 2, 1), F.max_pool2d(input.double(), 3, 2, 1)),
        (ops.avg_pool2d(input, 3, 2, 1), F.avg_pool2d(input.double(), 3, 2, 1)),
        (ops.adaptive_avg_pool2d(input, 1), F.adaptive_avg_pool2d(input.double(), 1)),
    ):
        assert torch.equal(ours.isnan(), theirs.isnan()) and torch.equal(ours.isinf(), theirs.isinf())
