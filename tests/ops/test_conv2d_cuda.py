"""conv2d on a GPU, against torch on the CPU in float64; the kernels run without one in tests/cuda_emulation."""

from __future__ import annotations

import math
from typing import Any

import gpu
import pytest
import torch
import torch.nn.functional as F
from conditions import HALF, LAYOUTS, relative_error, tolerance
from conv2d_samples import SAMPLES, tensors
from gpu import DEVICE, moved, tf32
from kernels import recorded
from torch import Tensor
from torch.autograd import gradgradcheck

import fastcnn
from fastcnn.ops import conv2d

pytestmark = gpu.MARKS

# Beside the samples of the CPU: more than one tile, and groups of few channels.
CUDA_SAMPLES: dict[str, dict[str, Any]] = {
    **SAMPLES,
    "tiles": dict(n=3, c=200, k=136, size=(17, 19), kernel=(3, 3), padding=1),
    "many_positions": dict(n=8, c=24, k=40, size=(45, 50), kernel=(3, 3), padding=1, stride=2),
    "deep": dict(n=1, c=256, k=192, size=(7, 7), kernel=(3, 3), padding=1),  # its depth is split
    "cardinality": dict(n=2, c=128, k=128, size=(28, 30), kernel=(3, 3), padding=1, groups=32),
    "depthwise_wide": dict(n=2, c=320, k=320, size=(29, 31), kernel=(5, 5), padding=2, groups=320),
}
TF32 = 2.0**-10  # what rounding both factors may add


def near(terms: int, dtype: torch.dtype, allowed: bool = False) -> float:
    return tolerance(terms, dtype) + (TF32 if allowed and dtype == torch.float32 else 0.0)


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_conv2d_on_cuda_values_and_gradients(dtype: torch.dtype, allowed: bool) -> None:
    for name, sample in CUDA_SAMPLES.items():
        for layout in LAYOUTS:
            input, weight, bias, options = tensors(sample, dtype, layout, grad=True)
            exact = [t.detach().double().requires_grad_() for t in (input, weight, bias)]
            expected = F.conv2d(*exact, **options)
            generator = torch.Generator().manual_seed(2)
            grad_output = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(dtype)
            wanted = torch.autograd.grad(expected, exact, grad_output.double())
            made = [moved(t) for t in (input, weight, bias)]
            with fastcnn.backends.fallback(False), tf32(allowed):
                output = conv2d(*made, **options)
                got = torch.autograd.grad(output, made, grad_output.to(DEVICE))
                there = conv2d(input, weight, bias, **options)
            at = (name, layout)
            assert output.stride() == there.stride() and output.dtype == dtype, at
            assert relative_error(output.cpu(), expected.detach()) <= near(weight[0].numel(), dtype, allowed), at
            positions = expected[:, 0].numel()
            for g, w, terms in zip(
                got, wanted, (sample["k"] * math.prod(sample["kernel"]), positions, positions), strict=True
            ):
                assert g.dtype == dtype
                assert relative_error(g.cpu(), w) <= near(terms, dtype, allowed), at


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_conv2d_on_cuda_relu_and_its_gradients(dtype: torch.dtype) -> None:
    for name in ("three", "grouped", "depthwise", "stem_strided", "tiles"):
        input, weight, bias, options = tensors(CUDA_SAMPLES[name], dtype, "channels_last", grad=True)
        made = [moved(t) for t in (input, weight, bias)]
        with fastcnn.backends.fallback(False), tf32(False):
            output = conv2d(*made, **options, activation="relu")
            grad_output = torch.randn_like(output)
            got = torch.autograd.grad(output, made, grad_output)
        exact = [t.detach().double().requires_grad_() for t in (input, weight, bias)]
        expected = F.conv2d(*exact, **options)
        assert relative_error(output.cpu(), F.relu(expected.detach())) <= tolerance(weight[0].numel(), dtype), name
        # The kernel's own choice, where rounding decides about zero.
        passes = (output.detach() > 0).cpu()
        wanted = torch.autograd.grad(expected, exact, grad_output.cpu().double() * passes)
        terms = max(expected[:, 0].numel(), weight.numel() // weight.shape[1])
        for g, w in zip(got, wanted, strict=True):
            assert relative_error(g.cpu(), w) <= tolerance(terms, dtype), name


def test_conv2d_on_cuda_gradient_of_a_concats_part() -> None:
    input, weight, bias, options = tensors(SAMPLES["three"], torch.float64)
    made = [moved(t).requires_grad_() for t in (input, weight, bias)]
    wide = torch.randn(2, 100, 9, 8, dtype=torch.float64, device=DEVICE).to(memory_format=torch.channels_last)
    gradients = [
        torch.autograd.grad(conv2d(*made, **options, activation="relu"), made, grad)
        for grad in (wide[:, 20:84], wide[:, 20:84].contiguous())
    ]
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_conv2d_on_cuda_second_order() -> None:
    for name in ("uneven", "grouped", "depthwise", "stride_over_kernel"):
        input, weight, bias, options = tensors({**SAMPLES[name], "n": 1}, torch.float64)
        made = tuple(moved(t).requires_grad_() for t in (input, weight, bias))
        for activation in (None, "relu"):

            def call(*t: Tensor, o: Any = options, a: Any = activation) -> Tensor:
                return conv2d(*t, **o, activation=a)

            assert gradgradcheck(call, made, fast_mode=True), name


def test_conv2d_on_cuda_gives_the_same_bits_in_every_run_and_in_any_batch_where_asked() -> None:
    for name in ("tiles", "many_positions", "deep", "cardinality", "depthwise_wide"):
        input, weight, bias, options = tensors(CUDA_SAMPLES[name], torch.float32, "channels_last", grad=True)
        made = [moved(t) for t in (input, weight, bias)]
        runs = []
        for _ in range(3):
            output = conv2d(*made, **options)
            runs.append((output, *torch.autograd.grad(output.square().sum(), made)))
        for run in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True)), name
        with fastcnn.backends.batch_invariant(True):
            alone, together = (conv2d(images, *made[1:], **options) for images in (made[0][:1], made[0]))
        assert torch.equal(alone, together[:1]), name


def test_conv2d_on_cuda_kernels_reached() -> None:
    ran: set[str] = set()
    for name in ("tiles", "cardinality", "depthwise_wide"):
        for dtype in (torch.float16, torch.float64):
            input, weight, bias, options = tensors(CUDA_SAMPLES[name], dtype, "channels_last")
            made = [moved(t).requires_grad_() for t in (input, weight, bias)]

            def run(t: Any = made, o: Any = options) -> None:
                torch.autograd.grad(conv2d(*t, **o, activation="relu").sum(), t)

            ran |= set(recorded(run))
    assert ran >= {
        "conv2d_gemm_fma", "conv2d_gemm_wmma", "conv2d_direct", "conv2d_depthwise", "conv2d_grad_output", "relu_mask",
    }  # fmt: skip


def test_conv2d_on_cuda_takes_torchs_own_op_for_what_no_kernel_covers() -> None:
    input = torch.randn(1, 2, 5, 5, dtype=torch.complex64, device=DEVICE)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.complex64, device=DEVICE)
    torch.testing.assert_close(conv2d(input, weight), F.conv2d(input, weight))
    with fastcnn.backends.fallback(False), pytest.raises(NotImplementedError, match="no kernel of fastcnn covers"):
        conv2d(input, weight)


def test_conv2d_on_cuda_refuses_tensors_of_two_devices() -> None:
    input, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    for arguments in ((input.to(DEVICE), weight), (input, weight.to(DEVICE))):
        with pytest.raises(RuntimeError, match="same device"):
            conv2d(*arguments)


def test_conv2d_on_cuda_runs_on_the_current_stream() -> None:
    input, weight, bias, options = tensors(CUDA_SAMPLES["tiles"], torch.float32, "channels_last")
    made = [moved(t) for t in (input, weight, bias)]
    expected = conv2d(*made, **options)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        filled = made[0] * 1  # in this stream, after the sleep
        output = conv2d(filled, *made[1:], **options)
    stream.synchronize()
    assert torch.equal(output, expected)


def test_conv2d_on_cuda_compiles_without_a_graph_break() -> None:
    input, weight, bias, options = tensors(SAMPLES["three"], torch.float32, "channels_last")
    made = [moved(t).requires_grad_() for t in (input, weight, bias)]

    def call(*t: Tensor) -> Tensor:
        return conv2d(*t, **options, activation="relu")

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    ours, wanted = (torch.autograd.grad(f(*made).square().sum(), made) for f in (compiled, call))
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_conv2d_on_cuda_with_64_bit_indices() -> None:
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free memory on the GPU")
    # More elements than 32 bits count, in the input and in the output of the stem's gradient.
    input = torch.zeros(2, 64, 4200, 4200, dtype=torch.float16, device=DEVICE).to(memory_format=torch.channels_last)
    weight = torch.randn(8, 64, 3, 3, dtype=torch.float16, device=DEVICE)
    input[1, :, -5:, -5:] = torch.randn(64, 5, 5, dtype=torch.float16, device=DEVICE)
    corner = input[1:, :, -8:, -8:].contiguous()
    with fastcnn.backends.batch_invariant(True):  # sums of one order
        output = conv2d(input, weight, padding=1)
        expected = conv2d(corner, weight, padding=1)
    assert torch.equal(output[1:, :, -6:, -6:], expected[:, :, -6:, -6:])
    grad = torch.zeros_like(output)
    grad[1, :, -1, -1] = 1
    gradients = torch.ops.fastcnn.conv2d_backward(grad, input, weight, [1, 1], [1, 1], [1, 1], 1, [True, True, False])
    small = torch.ops.fastcnn.conv2d_backward(
        grad[1:, :, -8:, -8:].contiguous(), corner, weight, [1, 1], [1, 1], [1, 1], 1, [True, True, False]
    )
    assert torch.equal(gradients[0][1:, :, -8:, -8:], small[0])
    torch.testing.assert_close(gradients[1], small[1])
