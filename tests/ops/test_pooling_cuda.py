"""Pooling on a GPU, against torch on the CPU in float64; the kernels run without one in tests/cuda_emulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gpu
import pytest
import torch
import torch.nn.functional as F
from conditions import LAYOUTS, relative_error
from gpu import DEVICE, moved
from kernels import recorded
from pooling_cases import FLOATS, SAMPLES, draw, gradient_like, options, tolerance
from torch import Tensor

import fastcnn
from fastcnn.ops import adaptive_avg_pool2d, avg_pool2d, max_pool2d

pytestmark = gpu.MARKS

MAX_SAMPLES: dict[str, dict[str, Any]] = {
    **SAMPLES,
    "dilated": dict(n=2, c=9, size=(11, 10), kernel_size=(3, 2), stride=2, padding=1, dilation=(2, 3)),
    "no_bytes": dict(n=1, c=5, size=(17, 18), kernel_size=(17, 16), stride=1, padding=8),
}
ADAPTIVE_SAMPLES: dict[str, dict[str, Any]] = {
    "global": dict(n=3, c=130, size=(7, 7), output_size=1),
    "global_one_channel": dict(n=2, c=1, size=(50, 60), output_size=1),
    "overlapping": dict(n=2, c=17, size=(7, 11), output_size=(5, 4)),
    "larger": dict(n=2, c=8, size=(3, 4), output_size=(7, 9)),
    "empty_output": dict(n=2, c=3, size=(4, 3), output_size=(0, 2)),
    "no_images": dict(n=0, c=3, size=(4, 3), output_size=1),
}
OPS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor], dict[str, dict[str, Any]]]] = {
    "max_pool2d": (max_pool2d, F.max_pool2d, MAX_SAMPLES),
    "avg_pool2d": (avg_pool2d, F.avg_pool2d, SAMPLES),
    "adaptive_avg_pool2d": (adaptive_avg_pool2d, F.adaptive_avg_pool2d, ADAPTIVE_SAMPLES),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", OPS)
def test_pooling_on_cuda_values_and_gradients(op: str, dtype: torch.dtype) -> None:
    ours, torchs, samples = OPS[op]
    for name, sample in samples.items():
        for layout in LAYOUTS:
            on_cpu = draw(sample, dtype, layout)
            exact = on_cpu.detach().double().requires_grad_()
            wanted = torchs(exact, **options(sample))
            grad_output = gradient_like(wanted).to(dtype)
            input = moved(on_cpu)
            with fastcnn.backends.fallback(False):
                output = ours(input, **options(sample))
                (gradient,) = torch.autograd.grad(output, input, grad_output.to(DEVICE))
                there = ours(on_cpu, **options(sample))
            near = tolerance(256, dtype)
            assert relative_error(output.cpu(), wanted.detach()) <= near, (name, layout)
            assert (output.stride(), gradient.stride()) == (
                there.stride(),
                torch.autograd.grad(there, on_cpu, grad_output)[0].stride(),
            )
            if wanted.numel() > 0:
                (exact_gradient,) = torch.autograd.grad(wanted, exact, grad_output.double())
                assert relative_error(gradient.cpu(), exact_gradient) <= near, (name, layout)


def test_max_pool2d_on_cuda_winners_as_on_the_cpu() -> None:
    for name, sample in MAX_SAMPLES.items():
        for dtype in FLOATS:
            input = draw(sample, torch.float64).detach().mul(2).round().to(dtype)  # ties
            chosen = torch.rand(input.shape, generator=torch.Generator().manual_seed(4))
            input[chosen < 0.1] = math.nan
            input[(chosen > 0.1) & (chosen < 0.3)] = -math.inf
            wanted, indices = max_pool2d(input, **options(sample), return_indices=True)
            output, found = max_pool2d(moved(input), **options(sample), return_indices=True)
            assert torch.equal(found.cpu(), indices), name
            assert torch.equal(output.cpu().nan_to_num(0.5), wanted.nan_to_num(0.5)), name


@pytest.mark.parametrize("op", OPS)
def test_pooling_on_cuda_second_order_and_same_bits(op: str) -> None:
    ours, _, samples = OPS[op]
    for name in [name for name in ("resnet", "ceil_padded", "dilated", "overlapping") if name in samples]:
        results = []
        on_cpu = draw(samples[name], torch.float64, "channels_last")
        for input in (on_cpu, moved(on_cpu), moved(on_cpu)):
            (slope,) = torch.autograd.grad(ours(input, **options(samples[name])).sin().sum(), input, create_graph=True)
            (curve,) = torch.autograd.grad(slope.square().sum(), input)
            results.append((slope.detach().cpu(), curve.cpu()))
        torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)
        for first, second in zip(*results[1:], strict=True):
            assert torch.equal(first, second)


def test_pooling_on_cuda_kernels_reached() -> None:
    input = torch.randn(1, 3, 6, 6, device=DEVICE, requires_grad=True)
    assert recorded(lambda: max_pool2d(input.detach(), 2)) == ["max_pool2d"]
    assert recorded(lambda: max_pool2d(input, 2, return_indices=True)) == ["max_pool2d", "max_pool2d_indices"]
    assert recorded(lambda: avg_pool2d(input.detach(), 2)) == ["avg_pool2d"]
    assert recorded(lambda: adaptive_avg_pool2d(input.detach(), 1)) == ["global_avg_pool2d"]
    pooled, averaged = max_pool2d(input, 3, 2), avg_pool2d(input, 3, 2)
    assert recorded(lambda: pooled.sum().backward()) == ["max_pool2d_backward"]
    assert recorded(lambda: averaged.sum().backward()) == ["avg_pool2d_backward"]


def test_pooling_on_cuda_takes_torchs_own_op_for_integers() -> None:
    integers = torch.randint(0, 99, (1, 2, 5, 5), dtype=torch.int32, device=DEVICE)
    with fastcnn.backends.fallback(False), pytest.raises(NotImplementedError, match="fallback"):
        max_pool2d(integers, 2)


def test_max_pool2d_on_cuda_refuses_offsets_of_another_device() -> None:
    arguments = ([2, 2], [2, 2], [0, 0], [1, 1], False)
    values = torch.randn(1, 2, 4, 4, device=DEVICE)
    output, offsets = torch.ops.fastcnn._max_pool2d_train(values, *arguments)
    backward = torch.ops.fastcnn.max_pool2d_backward.default
    for mixed in [(output, offsets.cpu()), (output.cpu(), offsets)]:
        with pytest.raises(RuntimeError, match="on the same device"):
            backward(*mixed, [1, 2, 4, 4], *arguments, torch.contiguous_format)
    with pytest.raises(RuntimeError, match="on the same device"):
        torch.ops.fastcnn._max_pool2d_gather(values, offsets.cpu(), *arguments)


def test_pooling_on_cuda_runs_on_the_current_stream() -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        input = torch.randn(4, 64, 56, 56, device=DEVICE)
        for _ in range(20):
            input = max_pool2d(input, 3, 1, 1) - avg_pool2d(input, 3, 1, 1)
        checked = (max_pool2d(input, 3, 1, 1), F.max_pool2d(input, 3, 1, 1))
    stream.synchronize()
    assert torch.equal(*checked)


def test_pooling_on_cuda_compiles_without_a_graph_break() -> None:
    def step(input: Tensor) -> Tensor:
        return max_pool2d(input, 3, 2, 1).square().sum() + adaptive_avg_pool2d(input, 2).sin().sum()

    input = torch.randn(2, 3, 8, 8, device=DEVICE, requires_grad=True)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(input), input)[0], torch.autograd.grad(step(input), input)[0]
    )


def test_pooling_on_cuda_with_64_bit_indices() -> None:
    shape = (1, 1 << 16, 182, 182)  # more than 2^31 elements
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("12 GB of free memory are needed")
    input = torch.zeros(shape, dtype=torch.float16, device=DEVICE).to(memory_format=torch.channels_last)
    last = torch.randn(182 * 64, device=DEVICE).half().view(1, 64, 1, 182)
    input[:, -64:, -1:] = last
    assert torch.equal(max_pool2d(input, (1, 2))[:, -64:, -1:], F.max_pool2d(last, (1, 2)))
    assert torch.equal(max_pool2d(input, 1)[:, -64:, -1:], last)
