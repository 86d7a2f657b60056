from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conditions import LAYOUTS, assert_conditions, assert_raises_like, generate, relative_error, with_layout
from kernels import recorded
from pooling_cases import (
    CONDITIONS,
    FLOATS,
    SAMPLES,
    BadCalls,
    assert_independent_of_threads_and_batch,
    assert_strides_as_torchs,
    assert_takes_torchs_own_op,
    bad_windows,
    draw,
    gradient_like,
    make_config,
    options,
    tolerance,
)
from torch.autograd import gradcheck, gradgradcheck

import fastcnn
from fastcnn import reference
from fastcnn.ops import avg_pool2d

AVG_SAMPLES: dict[str, dict[str, Any]] = {
    **SAMPLES,
    "true_pixels": dict(n=2, c=16, size=(7, 8), kernel_size=3, stride=2, padding=1, count_include_pad=False),
    "true_pixels_ceil": dict(
        n=2,
        c=5,
        size=(7, 8),
        kernel_size=(4, 3),
        stride=(3, 2),
        padding=(2, 1),
        ceil_mode=True,
        count_include_pad=False,
    ),
    "divisor": dict(n=2, c=19, size=(6, 7), kernel_size=2, stride=(2, 1), divisor_override=-3),
    "divisor_ceil": dict(n=2, c=6, size=(7, 7), kernel_size=2, padding=1, ceil_mode=True, divisor_override=2**40),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", AVG_SAMPLES)
def test_avg_pool2d_values_and_gradients(name: str, dtype: torch.dtype, layout: str) -> None:
    sample = AVG_SAMPLES[name]
    input = draw(sample, dtype, layout)
    exact = input.detach().double().requires_grad_()
    wanted = F.avg_pool2d(exact, **options(sample))
    grad_output = gradient_like(wanted).to(dtype)
    (wanted_gradient,) = torch.autograd.grad(wanted, exact, grad_output.double())
    with fastcnn.backends.fallback(False):
        output = avg_pool2d(input, **options(sample))
        (gradient,) = torch.autograd.grad(output, input, grad_output)
    assert output.dtype == gradient.dtype == dtype
    assert torch.equal(output, avg_pool2d(input.detach(), **options(sample)))
    terms = min(math.prod(sample["size"]), 300)
    if dtype == torch.float16 and "ceil" in name and "divisor" in name:
        assert output.abs().max() <= wanted.abs().max() + 1e-7  # below half precision's smallest number
        return
    assert relative_error(output, wanted.detach()) <= tolerance(terms, dtype)
    assert relative_error(gradient, wanted_gradient) <= tolerance(terms, dtype)


@pytest.mark.parametrize("name", ["resnet", "gaps", "ceil_padded", "true_pixels_ceil", "divisor"])
def test_avg_pool2d_equals_the_reference(name: str) -> None:
    sample = AVG_SAMPLES[name]
    input = draw(sample, torch.float64).detach()
    torch.testing.assert_close(avg_pool2d(input, **options(sample)), reference.avg_pool2d(input, **options(sample)))


def test_avg_pool2d_large_windows_stay_exact() -> None:
    input = torch.rand(1, 3, 400, 300, generator=torch.Generator().manual_seed(0)) + 100
    exact = F.avg_pool2d(input.double(), (400, 300))
    assert relative_error(avg_pool2d(input, (400, 300)), exact) < 1e-6


def make_avg_config(rng: random.Random) -> dict[str, Any]:
    """A tiny average pooling."""
    config = make_config(rng)
    config["count_include_pad"] = rng.random() < 0.5
    config["divisor_override"] = rng.choice([None, None, 2, -5])
    return config


CONFIGS = generate(make_avg_config, 320)
AVG_CONDITIONS = {
    **CONDITIONS,
    "padding that does not count": lambda c: not c["count_include_pad"] and max(c["padding"]) > 0,
    "ceil_mode with padding that does not count": lambda c: (
        c["ceil_mode"] and not c["count_include_pad"] and max(c["padding"]) > 0
    ),
    "divisor_override": lambda c: c["divisor_override"] is not None,
}


def test_avg_pool2d_configurations_cover_conditions() -> None:
    assert len(CONFIGS) >= 300
    assert_conditions(CONFIGS, AVG_CONDITIONS)


@pytest.mark.parametrize("part", range(8))
def test_avg_pool2d_gradcheck(part: int) -> None:
    with fastcnn.backends.fallback(False):
        for i, config in enumerate(CONFIGS[part::8]):
            input = draw(config, torch.float64, config["layout"])

            def call(input: torch.Tensor, config: Any = config) -> torch.Tensor:
                return avg_pool2d(input, **options(config))

            torch.testing.assert_close(call(input), F.avg_pool2d(input, **options(config)))
            assert gradcheck(call, input, fast_mode=i % 8 > 0), config
            assert gradgradcheck(call, input, fast_mode=i % 8 > 0), config


def test_avg_pool2d_second_order_as_torchs() -> None:
    for name in ("lenet", "resnet", "ceil_padded", "true_pixels_ceil", "divisor"):
        sample = AVG_SAMPLES[name]
        input = draw(sample, torch.float64, "channels_last")
        results = []
        for function in (avg_pool2d, F.avg_pool2d):
            (slope,) = torch.autograd.grad(function(input, **options(sample)).sin().sum(), input, create_graph=True)
            (curve,) = torch.autograd.grad(slope.square().sum(), input, create_graph=True)
            results.append((slope, curve, *torch.autograd.grad(curve.square().sum(), input)))
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


ARGUMENTS = [
    ([2, 2], [2, 2], [0, 0], False, True, None),
    ([3, 3], [2, 2], [1, 1], True, False, None),
    ([3, 2], [1, 2], [1, 0], True, True, 4),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_avg_pool2d_opcheck(arguments: tuple[Any, ...], layout: str) -> None:
    ops, check = torch.ops.fastcnn, torch.library.opcheck
    input = with_layout(torch.randn(2, 5, 9, 8), layout).requires_grad_()
    for t in (input, input.detach()):
        check(ops.avg_pool2d.default, (t, *arguments))
    output = ops.avg_pool2d(input.detach(), *arguments)
    for grad_output in (torch.randn_like(output), torch.randn_like(output).requires_grad_()):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            check(ops.avg_pool2d_backward.default, (grad_output, input.shape, *arguments, memory_format))
    check(ops.avg_pool2d.default, (input[:0].detach().requires_grad_(), [2, 2]))


def test_avg_pool2d_saves_no_tensor() -> None:
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        avg_pool2d(torch.randn(1, 3, 6, 6, requires_grad=True), 2)
    assert not saved


def test_avg_pool2d_kernels_reached() -> None:
    input = torch.randn(1, 3, 6, 6, requires_grad=True)
    assert recorded(lambda: avg_pool2d(input.detach(), 2)) == ["avg_pool2d"]
    touching, overlapping = avg_pool2d(input, 2), avg_pool2d(input, 3, 2)
    assert recorded(lambda: touching.sum().backward()) == ["avg_pool2d_backward_disjoint"]
    assert recorded(lambda: overlapping.sum().backward()) == ["avg_pool2d_backward"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_avg_pool2d_nan_and_infinity_as_torchs(dtype: torch.dtype, layout: str) -> None:
    for name in ("lenet", "resnet", "seven", "ceil_padded", "true_pixels"):
        sample = AVG_SAMPLES[name]
        input = draw(sample, torch.float64).detach()
        chosen = torch.rand(input.shape, generator=torch.Generator().manual_seed(4))
        input[chosen < 0.05] = math.nan
        input[(chosen > 0.05) & (chosen < 0.15)] = -math.inf
        input[(chosen > 0.15) & (chosen < 0.25)] = math.inf
        input = with_layout(input.to(dtype), layout).requires_grad_()
        output, wanted = avg_pool2d(input, **options(sample)), F.avg_pool2d(input, **options(sample))
        for where in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(where(output), where(wanted))
        grad_output = gradient_like(output)
        grad_output[0, 0, 0] = math.nan
        got, exact = (torch.autograd.grad(o, input, grad_output)[0] for o in (output, wanted))
        assert torch.equal(got.isnan(), exact.isnan())


@pytest.mark.parametrize("name", [name for name in AVG_SAMPLES if name != "no_images"])
def test_avg_pool2d_result_depends_on_neither_threads_nor_batch(name: str) -> None:
    sample = {**AVG_SAMPLES[name], "n": 7}
    assert_independent_of_threads_and_batch(
        lambda x: avg_pool2d(x, **options(sample)), draw(sample, layout="channels_last")
    )


def test_avg_pool2d_large_maps_depend_on_neither_threads_nor_batch() -> None:
    input = draw(dict(n=3, c=70, size=(60, 61)))
    assert_independent_of_threads_and_batch(lambda x: avg_pool2d(x, 3, 2, 1), input)
    assert_independent_of_threads_and_batch(lambda x: avg_pool2d(x, 2, ceil_mode=True), input)


@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (2, 1, 6, 6), (1, 5, 4, 4), (2, 4, 1, 1), (0, 3, 4, 4), (1, 1, 1, 1)])
def test_avg_pool2d_strides_as_torchs(shape: tuple[int, ...]) -> None:
    kernel, padding = (3, 1) if shape[2] == 1 else (2, 0)
    assert_strides_as_torchs(
        lambda x: avg_pool2d(x, kernel, 2, padding), lambda x: F.avg_pool2d(x, kernel, 2, padding), shape
    )


def test_avg_pool2d_unbatched_input_as_torch() -> None:
    for input in (torch.randn(3, 7, 8), torch.randn(7, 8, 3).permute(2, 0, 1)):
        got, wanted = avg_pool2d(input, 3, 2, 1), F.avg_pool2d(input, 3, 2, 1)
        torch.testing.assert_close(got, wanted)
        assert got.stride() == wanted.stride()


def bad_calls() -> BadCalls:
    x = torch.randn(2, 3, 6, 6)
    return {
        **bad_windows(x),
        "rank 1": ((x[0, 0, 0], 2), {}, ("Dimension out of range",)),
        "rank 2": ((x[0, 0], 2), {}, ("Dimension out of range",)),
        "rank 5": ((x[None], 2), {}, ("Expected 3D or 4D (batch mode)",)),
        "zero divisor": ((x, 2), dict(divisor_override=0), ("divisor must be not zero",)),
        "float divisor": ((x, 2), dict(divisor_override=1.5), ("divisor_override", "must be int, not float")),
        "bool divisor": ((x, 2), dict(divisor_override=True), ("divisor_override", "must be int, not bool")),
        "int32 input": ((x.int(), 2), {}, ("not implemented for 'Int'",)),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_avg_pool2d_bad_input_raises_as_torch(name: str) -> None:
    args, kwargs, words = bad_calls()[name]
    assert_raises_like(lambda: avg_pool2d(*args, **kwargs), lambda: F.avg_pool2d(*args, **kwargs), *words)
    if isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
        meta = args[0].to("meta")
        assert_raises_like(lambda: avg_pool2d(meta, *args[1:], **kwargs), lambda: F.avg_pool2d(*args, **kwargs))


def test_avg_pool2d_backward_refuses_what_does_not_fit() -> None:
    rest = ([1, 2, 4, 4], [2, 2], [2, 2], [0, 0], False, True, None, torch.contiguous_format)
    backward = torch.ops.fastcnn.avg_pool2d_backward.default
    with pytest.raises(RuntimeError, match="expected grad_output of size"):
        backward(torch.randn(1, 2, 2, 1), *rest)
    with pytest.raises(NotImplementedError, match="not implemented for 'Long'"):
        backward(torch.ones(1, 2, 2, 2, dtype=torch.int64), *rest)


def test_avg_pool2d_takes_torchs_own_op_where_ours_cannot_follow() -> None:
    assert_takes_torchs_own_op(lambda x: avg_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2))
    integers = torch.randint(-99, 99, (1, 2, 5, 5))
    assert torch.equal(avg_pool2d(integers, 3, 2), F.avg_pool2d(integers, 3, 2))
    with fastcnn.backends.fallback(False), pytest.raises(NotImplementedError, match="fallback"):
        avg_pool2d(integers, 2)
    assert avg_pool2d(torch.empty(2, 3, 6, 6, device="meta"), 2).shape == (2, 3, 3, 3)


def test_avg_pool2d_compiles_without_a_graph_break() -> None:
    def step(input: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(input, 2).square().sum() + avg_pool2d(input, 3, 2, 1, True, False).square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (2, 3):
        input = torch.randn(n, 3, 8, 8, requires_grad=True)
        wanted, got = (torch.autograd.grad(f(input), input)[0] for f in (step, compiled))
        torch.testing.assert_close(got, wanted)


def test_avg_pool2d_autocast_keeps_the_dtype_as_torchs() -> None:
    input = torch.randn(1, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert avg_pool2d(input, 2).dtype == F.avg_pool2d(input, 2).dtype
        assert avg_pool2d(input.bfloat16(), 2).dtype == F.avg_pool2d(input.bfloat16(), 2).dtype


def test_avg_pool2d_expanded_gradient() -> None:
    input = torch.randn(2, 3, 6, 6, requires_grad=True)
    got, wanted = (torch.autograd.grad(f(input, 3, 2).sum(), input)[0] for f in (avg_pool2d, F.avg_pool2d))
    torch.testing.assert_close(got, wanted)
