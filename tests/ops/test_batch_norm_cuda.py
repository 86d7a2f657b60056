"""Batch norm on a GPU, against torch on the CPU in float64; its kernels run without one in tests/cuda_emulation."""

from __future__ import annotations

import math

import gpu
import pytest
import torch
import torch.nn.functional as F
from batch_norm_cases import CASES, SAMPLES, Case, reference, tolerance
from conditions import relative_error
from gpu import DEVICE, moved
from kernels import recorded

import fastcnn
from fastcnn.ops import batch_norm, batch_norm_relu

pytestmark = gpu.MARKS

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def on_gpu(case: Case) -> Case:
    other = object.__new__(Case)
    for name, t in vars(case).items():
        setattr(other, name, moved(t))
    return other


def input_scale(name: str, output: torch.Tensor, grad_input: torch.Tensor) -> float:
    """How much larger errors may be: with two rows the input's gradient is what is left of terms that cancel."""
    return max(1.0, 30 * float(output.detach().abs().max() / grad_input.abs().max())) if name == "two_rows" else 1.0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_batch_norm_on_cuda_values_and_gradients(dtype: torch.dtype, training: bool) -> None:
    for name, layout in CASES:
        on_cpu = Case(SAMPLES[name], dtype, layout, grad=True)
        exact, case = on_cpu.double(), on_gpu(on_cpu)
        wanted_statistics, statistics = exact.statistics(), case.statistics()
        wanted = reference(exact, wanted_statistics, training)
        with fastcnn.backends.fallback(False):
            output = batch_norm(case.input, *statistics, case.weight, case.bias, training)
            gradients = torch.autograd.grad(output, (case.input, case.weight, case.bias), case.grad_output)
        there = batch_norm(on_cpu.input, *on_cpu.statistics(), on_cpu.weight, on_cpu.bias, training)
        assert (output.dtype, output.stride()) == (dtype, there.stride())
        assert relative_error(output.cpu(), wanted.detach()) <= tolerance(dtype), (name, layout)
        expected = torch.autograd.grad(wanted, (exact.input, exact.weight, exact.bias), exact.grad_output)
        scale = input_scale(name, wanted, expected[0])
        for g, w in zip(gradients, expected, strict=True):
            assert relative_error(g.cpu(), w) <= scale * tolerance(dtype), (name, layout)
        for s, w in zip(statistics, wanted_statistics, strict=True):
            assert relative_error(s.cpu(), w) <= tolerance(dtype), (name, layout)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_batch_norm_relu_on_cuda_values_and_gradients(dtype: torch.dtype, training: bool) -> None:
    for name, layout in CASES:
        on_cpu = Case(SAMPLES[name], dtype, layout, grad=True)
        exact, case = on_cpu.double(), on_gpu(on_cpu)
        wanted = reference(exact, exact.statistics(), training, residual=True)
        with fastcnn.backends.fallback(False):
            output = batch_norm_relu(
                case.input, *case.statistics(), case.weight, case.bias, training, residual=case.residual
            )
            inputs = (case.input, case.weight, case.bias, case.residual)
            gradients = torch.autograd.grad(output, inputs, case.grad_output)
        assert relative_error(output.cpu(), F.relu(wanted.detach())) <= tolerance(dtype), (name, layout)
        # The kernel's own choice, where rounding decides about zero.
        passes = (output.detach() > 0).cpu().double()
        leaves = (exact.input, exact.weight, exact.bias, exact.residual)
        expected = torch.autograd.grad(wanted, leaves, exact.grad_output * passes)
        scale = input_scale(name, wanted, expected[0])
        for g, w in zip(gradients, expected, strict=True):
            assert relative_error(g.cpu(), w) <= 2 * scale * tolerance(dtype), (name, layout)


def test_batch_norm_on_cuda_same_bits_in_every_run() -> None:
    for shape in ((4, 64, 56, 56), (32, 3, 100, 90), (8, 2048, 7, 7)):
        case = on_gpu(Case(shape, torch.float32, "channels_last", grad=True))
        results = []
        for _ in range(3):
            output = batch_norm_relu(case.input, None, None, case.weight, case.bias, True)
            leaves = (case.input, case.weight, case.bias)
            results.append((output, *torch.autograd.grad(output, leaves, case.grad_output)))
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_batch_norm_on_cuda_second_order_as_on_the_cpu() -> None:
    results = []
    for move in (lambda case: case, on_gpu):
        case = move(Case((3, 9, 5, 4), torch.float64, "channels_last", grad=True))
        output = batch_norm_relu(case.input, None, None, case.weight, case.bias, True, residual=case.residual)
        (slope,) = torch.autograd.grad(output.sin().sum(), case.input, create_graph=True)
        results.append([t.cpu() for t in torch.autograd.grad(slope.square().sum(), (case.input, case.weight))])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def test_batch_norm_on_cuda_statistics_of_a_mean_far_from_zero() -> None:
    for first_row in (0.0, 1e6):
        input = torch.randn(16, 24, 20, 20, generator=torch.Generator().manual_seed(0)) + 1e4
        input[0, :, 0, 0] += first_row
        there = input.to(DEVICE, memory_format=torch.channels_last)
        _, mean, var = (t.cpu() for t in torch.ops.fastcnn.batch_norm_train(there, None, None, None, 1e-5, False))
        exact_var, exact_mean = torch.var_mean(input.double(), (0, 2, 3), correction=0)
        rounding = torch.finfo(torch.float32).eps * exact_mean.abs()
        assert bool(((mean - exact_mean).abs() <= rounding + 1e-6 * exact_var.sqrt()).all())
        assert float((var / exact_var - 1).abs().max()) < 1e-5


def test_batch_norm_on_cuda_nan_and_infinity() -> None:
    for value in (math.nan, math.inf, -math.inf):
        on_cpu = Case((3, 9, 5, 4), layout="channels_last")
        on_cpu.input[1, 8, 0, 1] = value
        case = on_gpu(on_cpu)
        for training in (True, False):
            got, wanted = (
                batch_norm_relu(c.input, *c.statistics(), c.weight, c.bias, training, residual=c.residual).cpu()
                for c in (case, on_cpu)
            )
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_batch_norm_on_cuda_of_nothing() -> None:
    for shape in [(0, 3), (0, 3, 2, 2), (2, 3, 0, 2), (2, 0, 2, 2)]:
        for training in (True, False):
            case = on_gpu(Case(shape, grad=True))
            output = batch_norm_relu(
                case.input, *case.statistics(), case.weight, case.bias, training, residual=case.residual
            )
            leaves = (case.input, case.weight, case.bias, case.residual)
            for gradient, leaf in zip(torch.autograd.grad(output.sum(), leaves), leaves, strict=True):
                assert gradient.shape == leaf.shape and not gradient.any()


def test_batch_norm_on_cuda_kernels_reached_and_devices_checked() -> None:
    case = on_gpu(Case((2, 8, 5, 5), grad=True))
    arguments = (*case.statistics(), case.weight, case.bias)
    training = ["batch_norm_stats", "batch_norm_apply"]
    assert recorded(lambda: batch_norm(case.input, *arguments, training=True)) == training
    assert recorded(lambda: batch_norm(case.input, *arguments)) == training[1:]
    output = batch_norm_relu(case.input, *arguments, training=True)
    assert recorded(lambda: output.sum().backward()) == ["batch_norm_grad_sums", "batch_norm_grad_input"]
    with pytest.raises(RuntimeError, match="on the same device"):
        batch_norm(case.input, None, None, case.weight.detach().cpu(), case.bias, training=True)
    with pytest.raises(RuntimeError, match="on the same device"):
        batch_norm(case.input, *(t.cpu() for t in case.statistics()), training=True)


def test_relu_mask_on_cuda_as_on_the_cpu() -> None:
    for channels in (1, 7, 8, 9, 64, 130):
        for dtype in FLOATS:
            output = torch.randn(3, channels, 5, 4).to(dtype)
            output[0, 0, 0, :3] = torch.tensor([math.nan, math.inf, -0.0])
            mask = torch.ops.fastcnn._relu_mask(output.to(DEVICE))
            assert torch.equal(mask.cpu(), torch.ops.fastcnn._relu_mask(output))
