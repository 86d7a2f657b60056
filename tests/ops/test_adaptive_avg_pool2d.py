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
    FLOATS,
    assert_independent_of_threads_and_batch,
    assert_strides_as_torchs,
    assert_takes_torchs_own_op,
    draw,
    gradient_like,
    tolerance,
)
from torch.autograd import gradcheck, gradgradcheck

import fastcnn
from fastcnn import reference
from fastcnn.ops import adaptive_avg_pool2d

# Channels straddle the vector widths; windows divide the image, overlap, and repeat pixels.
SAMPLES: dict[str, dict[str, Any]] = {
    "global": dict(n=3, c=130, size=(7, 7), output_size=1),
    "global_one_channel": dict(n=2, c=1, size=(5, 6), output_size=(1, 1)),
    "global_few": dict(n=2, c=7, size=(3, 4), output_size=1),
    "global_vector": dict(n=2, c=16, size=(6, 5), output_size=1),
    "global_after_vector": dict(n=2, c=65, size=(2, 9), output_size=1),
    "global_one_pixel": dict(n=4, c=9, size=(1, 1), output_size=1),
    "row": dict(n=2, c=5, size=(6, 7), output_size=(1, 3)),
    "dividing": dict(n=2, c=33, size=(6, 8), output_size=(3, 4)),
    "overlapping": dict(n=2, c=17, size=(7, 11), output_size=(5, 4)),
    "same": dict(n=2, c=15, size=(5, 6), output_size=(5, 6)),
    "larger": dict(n=2, c=8, size=(3, 4), output_size=(7, 9)),
    "kept_rows": dict(n=2, c=6, size=(6, 7), output_size=(None, 2)),
    "kept": dict(n=1, c=3, size=(4, 3), output_size=(None, None)),
    "empty_output": dict(n=2, c=3, size=(4, 3), output_size=(0, 2)),
    "no_images": dict(n=0, c=3, size=(4, 3), output_size=2),
    "no_images_global": dict(n=0, c=3, size=(4, 3), output_size=1),
    "no_channels": dict(n=2, c=0, size=(4, 3), output_size=(2, 1)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", SAMPLES)
def test_adaptive_avg_pool2d_values_and_gradients(name: str, dtype: torch.dtype, layout: str) -> None:
    sample = SAMPLES[name]
    input = draw(sample, dtype, layout)
    exact = input.detach().double().requires_grad_()
    wanted = F.adaptive_avg_pool2d(exact, sample["output_size"])
    grad_output = gradient_like(wanted).to(dtype)
    with fastcnn.backends.fallback(False):
        output = adaptive_avg_pool2d(input, sample["output_size"])
        (gradient,) = torch.autograd.grad(output, input, grad_output)
    assert output.dtype == gradient.dtype == dtype
    assert torch.equal(output, adaptive_avg_pool2d(input.detach(), sample["output_size"]))
    assert relative_error(output, wanted.detach()) <= tolerance(math.prod(sample["size"]), dtype)
    if output.numel() == 0:
        assert gradient.abs().sum() == 0  # torch's backward refuses empty gradients
        return
    (wanted_gradient,) = torch.autograd.grad(wanted, exact, grad_output.double())
    assert relative_error(gradient, wanted_gradient) <= tolerance(math.prod(wanted.shape[2:]), dtype)


@pytest.mark.parametrize("name", ["global", "row", "overlapping", "larger", "kept_rows"])
def test_adaptive_avg_pool2d_equals_the_reference(name: str) -> None:
    sample = SAMPLES[name]
    input = draw(sample, torch.float64).detach()
    wanted = reference.adaptive_avg_pool2d(input, sample["output_size"])
    torch.testing.assert_close(adaptive_avg_pool2d(input, sample["output_size"]), wanted)


def test_adaptive_avg_pool2d_large_images_stay_exact() -> None:
    input = torch.rand(1, 3, 400, 300, generator=torch.Generator().manual_seed(0)) + 100
    assert relative_error(adaptive_avg_pool2d(input, 1), input.double().mean((2, 3), keepdim=True)) < 1e-6


def make_config(rng: random.Random) -> dict[str, Any]:
    """A tiny adaptive pooling; a third of them global."""
    return dict(
        n=rng.randint(1, 2),
        c=rng.randint(1, 3),
        size=(rng.randint(1, 6), rng.randint(1, 6)),
        output_size=(1, 1) if rng.random() < 0.3 else (rng.randint(1, 5), rng.randint(1, 5)),
        layout=rng.choice(LAYOUTS),
    )


def pairs(config: dict[str, Any]) -> list[tuple[int, int]]:
    return list(zip(config["size"], config["output_size"], strict=True))


CONFIGS = generate(make_config, 320)
CONDITIONS = {
    "global": lambda c: c["output_size"] == (1, 1),
    "dividing": lambda c: c["output_size"] != (1, 1) and all(i % o == 0 for i, o in pairs(c)),
    "overlapping windows": lambda c: any(i > o > 1 and i % o != 0 for i, o in pairs(c)),
    "larger than the image": lambda c: any(o > i for i, o in pairs(c)),
    "contiguous": lambda c: c["layout"] == "contiguous",
    "channels_last": lambda c: c["layout"] == "channels_last",
    "strided view": lambda c: c["layout"] == "strided",
}


def test_adaptive_avg_pool2d_configurations_cover_conditions() -> None:
    assert len(CONFIGS) >= 300
    assert_conditions(CONFIGS, CONDITIONS)


@pytest.mark.parametrize("part", range(8))
def test_adaptive_avg_pool2d_gradcheck(part: int) -> None:
    with fastcnn.backends.fallback(False):
        for i, config in enumerate(CONFIGS[part::8]):
            input = draw(config, torch.float64, config["layout"])

            def call(input: torch.Tensor, config: Any = config) -> torch.Tensor:
                return adaptive_avg_pool2d(input, config["output_size"])

            torch.testing.assert_close(call(input), F.adaptive_avg_pool2d(input, config["output_size"]))
            assert gradcheck(call, input, fast_mode=i % 8 > 0), config
            assert gradgradcheck(call, input, fast_mode=i % 8 > 0), config


def test_adaptive_avg_pool2d_second_order_as_torchs() -> None:
    for name in ("global", "overlapping", "dividing"):
        sample = SAMPLES[name]
        input = draw(sample, torch.float64, "channels_last")
        results = []
        for function in (adaptive_avg_pool2d, F.adaptive_avg_pool2d):
            output = function(input, sample["output_size"])
            (slope,) = torch.autograd.grad(output.sin().sum(), input, create_graph=True)
            (curve,) = torch.autograd.grad(slope.square().sum(), input, create_graph=True)
            results.append((slope, curve, *torch.autograd.grad(curve.square().sum(), input)))
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("output_size", [[1, 1], [2, 4], [3, 2], [9, 5]], ids=str)
def test_adaptive_avg_pool2d_opcheck(output_size: list[int], layout: str) -> None:
    ops, check = torch.ops.fastcnn, torch.library.opcheck
    input = with_layout(torch.randn(2, 5, 6, 8), layout).requires_grad_()
    for t in (input, input.detach()):
        check(ops.adaptive_avg_pool2d.default, (t, output_size))
    output = ops.adaptive_avg_pool2d(input.detach(), output_size)
    for grad_output in (torch.randn_like(output), torch.randn_like(output).requires_grad_()):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            check(ops.adaptive_avg_pool2d_backward.default, (grad_output, input.shape, memory_format))


def test_adaptive_avg_pool2d_kernels_reached() -> None:
    input = torch.randn(1, 3, 6, 6, requires_grad=True)
    calls = {
        1: ["global_avg_pool2d", "global_avg_pool2d_backward"],
        3: ["avg_pool2d", "avg_pool2d_backward_disjoint"],
        4: ["avg_pool2d", "avg_pool2d_backward"],
    }
    for size, kernels in calls.items():
        assert recorded(lambda size=size: adaptive_avg_pool2d(input, size).sum().backward()) == kernels


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_adaptive_avg_pool2d_nan_and_infinity_as_torchs(dtype: torch.dtype, layout: str) -> None:
    for name in ("global", "overlapping", "dividing"):
        sample = SAMPLES[name]
        input = draw(sample, torch.float64).detach()
        chosen = torch.rand(input.shape, generator=torch.Generator().manual_seed(4))
        input[chosen < 0.02] = math.nan
        input[(chosen > 0.02) & (chosen < 0.04)] = -math.inf
        input[(chosen > 0.04) & (chosen < 0.06)] = math.inf
        input = with_layout(input.to(dtype), layout)
        output = adaptive_avg_pool2d(input, sample["output_size"])
        wanted = F.adaptive_avg_pool2d(input, sample["output_size"])
        for where in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(where(output), where(wanted))


def test_adaptive_avg_pool2d_mean_of_an_empty_image_is_nan_as_torchs() -> None:
    for shape in [(2, 3, 0, 6), (2, 3, 6, 0)]:
        input = torch.randn(shape, requires_grad=True)
        output = adaptive_avg_pool2d(input, 1)
        assert output.shape == F.adaptive_avg_pool2d(input, 1).shape and output.isnan().all()
        assert torch.autograd.grad(output.sum(), input)[0].shape == shape


@pytest.mark.parametrize("name", ["global", "global_few", "overlapping", "dividing", "larger", "row"])
def test_adaptive_avg_pool2d_result_depends_on_neither_threads_nor_batch(name: str) -> None:
    sample = {**SAMPLES[name], "n": 7}
    assert_independent_of_threads_and_batch(
        lambda x: adaptive_avg_pool2d(x, sample["output_size"]), draw(sample, layout="channels_last")
    )


@pytest.mark.parametrize("size", [1, 2, (9, 4)])
def test_adaptive_avg_pool2d_large_maps_depend_on_neither_threads_nor_batch(size: Any) -> None:
    input = draw(dict(n=3, c=70, size=(60, 61)))
    assert_independent_of_threads_and_batch(lambda x: adaptive_avg_pool2d(x, size), input)


@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (2, 1, 6, 6), (1, 5, 4, 4), (2, 4, 1, 1), (1, 1, 1, 1)])
def test_adaptive_avg_pool2d_strides_as_torchs(shape: tuple[int, ...]) -> None:
    for size in (1, 2, (3, 2), (None, 1)):
        # torch's gradient of a global mean is expanded, with strides of 0; ours is in the input's format.
        assert_strides_as_torchs(
            lambda x, size=size: adaptive_avg_pool2d(x, size),
            lambda x, size=size: F.adaptive_avg_pool2d(x, size),
            shape,
            gradients=F.adaptive_avg_pool2d(torch.zeros(shape), size).shape[2:] != (1, 1),
        )
    nhwc = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(adaptive_avg_pool2d(nhwc, 1).sum(), nhwc)
    assert gradient.stride() == nhwc.stride()


def test_adaptive_avg_pool2d_other_ranks_as_torch() -> None:
    for input in (torch.randn(3, 7, 8), torch.randn(7, 8, 3).permute(2, 0, 1)):
        for size in (1, 3, (2, None)):
            got, wanted = adaptive_avg_pool2d(input, size), F.adaptive_avg_pool2d(input, size)
            torch.testing.assert_close(got, wanted)
            assert got.stride() == wanted.stride()
    for input in (torch.randn(5, 4), torch.randn(2, 3, 2, 5, 4)):
        torch.testing.assert_close(adaptive_avg_pool2d(input, 1), F.adaptive_avg_pool2d(input, 1))


def bad_calls() -> dict[str, tuple[tuple[Any, ...], tuple[str, ...]]]:
    x = torch.randn(2, 3, 6, 6)
    return {
        "rank 1": ((x[0, 0, 0], 1), ("Dimension out of range",)),
        "rank 2": ((x[0, 0], 2), ("Expected 3D or 4D tensor",)),
        "rank 2 and a pair": ((x[0, 0], (2, 2)), ("Input dimension should be at least 3",)),
        "rank 5": ((x[None], 2), ("Expected 3D or 4D tensor",)),
        "negative": ((x, -1), ("elements of output_size must be greater than or equal to 0", "{-1, -1}")),
        "negative row": ((x, (-1, 1)), ("elements of output_size must be greater than or equal to 0", "{-1, 1}")),
        "three sizes": ((x, (1, 2, 3)), ("output_size must be 2",)),
        "one size": ((x, (1,)), ("output_size must be 2",)),
        "no size": ((x, None), ()),
        "float": ((x, 1.5), ()),
        "no rows": ((x[:, :, :0], 2), ("Expected input to have non-zero size for non-batch dimensions", "dimension 2")),
        "no rows, kept": ((x[:, :, :0], (None, 1)), ("Expected input to have non-zero size for non-batch dimensions",)),
        "huge": ((x, 2**40), ("overflow",)),
        "more than memory": ((x, (2**40, 2)), ("memory",)),
        "not a tensor": (([1.0], 2), ()),
        "integers": ((x.long(), 2), ("not implemented for 'Long'",)),
        "integers, global": ((x.long(), 1), ("dtype",)),
        "bool": ((x > 0, 2), ("not implemented for 'Bool'",)),
        "complex": ((x.to(torch.complex64), 2), ("not implemented for 'ComplexFloat'",)),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_adaptive_avg_pool2d_bad_input_raises_as_torch(name: str) -> None:
    args, words = bad_calls()[name]
    if name == "not a tensor":
        with pytest.raises(TypeError, match="Tensor"):  # torch's wrapper has an AttributeError
            adaptive_avg_pool2d(*args)
        return
    assert_raises_like(lambda: adaptive_avg_pool2d(*args), lambda: F.adaptive_avg_pool2d(*args), *words)
    if args[0].is_floating_point() and name not in ("huge", "more than memory"):
        meta = args[0].to("meta")
        assert_raises_like(lambda: adaptive_avg_pool2d(meta, args[1]), lambda: F.adaptive_avg_pool2d(*args))


def test_adaptive_avg_pool2d_backward_refuses_what_does_not_fit() -> None:
    backward = torch.ops.fastcnn.adaptive_avg_pool2d_backward.default
    for grad_output in (torch.randn(2, 2), torch.randn(2, 2, 2, 2)):
        with pytest.raises(RuntimeError, match="expected grad_output"):
            backward(grad_output, [1, 2, 4, 4], torch.contiguous_format)


def test_adaptive_avg_pool2d_takes_torchs_own_op_where_ours_cannot_follow() -> None:
    input = torch.randn(2, 3, 6, 6)
    for size in (1, 4):
        assert_takes_torchs_own_op(
            lambda x, size=size: adaptive_avg_pool2d(x, size), lambda x, size=size: F.adaptive_avg_pool2d(x, size)
        )
        assert adaptive_avg_pool2d(input.to("meta"), size).shape == (2, 3, size, size)
    # torch's global mean takes complex numbers.
    values = input.to(torch.complex64)
    torch.testing.assert_close(adaptive_avg_pool2d(values, 1), F.adaptive_avg_pool2d(values, 1))


def test_adaptive_avg_pool2d_compiles_without_a_graph_break() -> None:
    def step(input: torch.Tensor) -> torch.Tensor:
        return adaptive_avg_pool2d(input, 1).square().sum() + adaptive_avg_pool2d(input, (3, None)).square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (2, 3):
        input = torch.randn(n, 3, 8, 8, requires_grad=True)
        wanted, got = (torch.autograd.grad(f(input), input)[0] for f in (step, compiled))
        torch.testing.assert_close(got, wanted)


def test_adaptive_avg_pool2d_expanded_gradient() -> None:
    input = torch.randn(2, 3, 6, 6, requires_grad=True)
    for size in (1, 4):
        got, wanted = (
            torch.autograd.grad(f(input, size).sum(), input)[0] for f in (adaptive_avg_pool2d, F.adaptive_avg_pool2d)
        )
        torch.testing.assert_close(got, wanted)
