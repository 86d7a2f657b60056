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
from fastcnn.ops import max_pool2d

MAX_SAMPLES: dict[str, dict[str, Any]] = {
    **SAMPLES,
    "dilated": dict(n=2, c=16, size=(11, 12), kernel_size=3, stride=2, padding=1, dilation=2),
    "dilated_wide": dict(n=1, c=65, size=(9, 9), kernel_size=(2, 3), stride=1, padding=(1, 0), dilation=(3, 4)),
    "dilated_ceil": dict(n=2, c=5, size=(8, 9), kernel_size=2, stride=3, padding=1, dilation=(2, 3), ceil_mode=True),
    "dilated_row": dict(n=1, c=3, size=(7, 9), kernel_size=(1, 2), stride=(1, 4), dilation=(1, 3)),
    "no_bytes": dict(n=1, c=18, size=(17, 18), kernel_size=17, stride=(1, 2), padding=8),
    "no_bytes_disjoint": dict(n=2, c=34, size=(35, 20), kernel_size=(17, 20)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", MAX_SAMPLES)
def test_max_pool2d_values_and_gradients(name: str, dtype: torch.dtype, layout: str) -> None:
    sample = MAX_SAMPLES[name]
    input = draw(sample, dtype, layout)
    exact = input.detach().double().requires_grad_()
    wanted, wanted_indices = F.max_pool2d(exact, **options(sample), return_indices=True)
    grad_output = gradient_like(wanted).to(dtype)
    (wanted_gradient,) = torch.autograd.grad(wanted, exact, grad_output.double())
    with fastcnn.backends.fallback(False):
        output, indices = max_pool2d(input, **options(sample), return_indices=True)
        plain = max_pool2d(input, **options(sample))
        (gradient,) = torch.autograd.grad(output, input, grad_output)
        assert torch.equal(gradient, torch.autograd.grad(plain, input, grad_output)[0])
        inference = max_pool2d(input.detach(), **options(sample), return_indices=True)
    assert output.dtype == gradient.dtype == dtype
    assert torch.equal(output.double(), wanted) and torch.equal(indices, wanted_indices)
    assert torch.equal(output, plain) and torch.equal(output, inference[0]) and torch.equal(indices, inference[1])
    assert torch.equal(output, max_pool2d(input.detach(), **options(sample)))
    windows = min(math.prod(sample["size"]), 300)  # over one pixel, at most
    assert relative_error(gradient, wanted_gradient) <= tolerance(windows, dtype)


@pytest.mark.parametrize("name", ["resnet", "gaps", "ceil_padded", "dilated", "dilated_ceil"])
def test_max_pool2d_equals_the_reference(name: str) -> None:
    sample = MAX_SAMPLES[name]
    input = draw(sample).detach().round()  # with ties
    wanted, wanted_indices = reference.max_pool2d(input, **options(sample))
    output, indices = max_pool2d(input, **options(sample), return_indices=True)
    assert torch.equal(output, wanted) and torch.equal(indices, wanted_indices)


def make_max_config(rng: random.Random) -> dict[str, Any]:
    """A tiny max pooling without a window that lies in the padding; many of them hold ties."""
    while True:
        config = make_config(rng)
        config["dilation"] = (rng.choice([1, 1, 2]), rng.choice([1, 1, 2]))
        config["ties"] = rng.random() < 0.4
        spans = [d * (k - 1) + 1 for d, k in zip(config["dilation"], config["kernel_size"], strict=True)]
        if all(s + 2 * p >= span for s, p, span in zip(config["size"], config["padding"], spans, strict=True)):
            image = torch.zeros(1, 1, *config["size"])
            if F.max_pool2d(image, **options(config)).isfinite().all():
                return config


CONFIGS = generate(make_max_config, 520)
SMOOTH = [c for c in CONFIGS if not c["ties"]]
TIES = [c for c in CONFIGS if c["ties"]]
MAX_CONDITIONS = {**CONDITIONS, "dilation": lambda c: max(c["dilation"]) > 1}


def input_of(config: dict[str, Any], ties: bool) -> torch.Tensor:
    """Distinct values, far enough apart for finite differences; or only three values, so that windows hold ties."""
    count = config["n"] * config["c"] * math.prod(config["size"])
    values = torch.randperm(count, generator=torch.Generator().manual_seed(count)).double()
    values = (values % 3 if ties else 0.1 * values).reshape(config["n"], config["c"], *config["size"])
    return with_layout(values, config["layout"]).requires_grad_()


def test_max_pool2d_configurations_cover_conditions() -> None:
    assert len(SMOOTH) >= 300
    assert_conditions(SMOOTH, MAX_CONDITIONS)
    assert_conditions(TIES, MAX_CONDITIONS)


@pytest.mark.parametrize("part", range(8))
def test_max_pool2d_gradcheck(part: int) -> None:
    with fastcnn.backends.fallback(False):
        for i, config in enumerate(SMOOTH[part::8]):
            input = input_of(config, ties=False)

            def call(input: torch.Tensor, config: Any = config) -> torch.Tensor:
                return max_pool2d(input, **options(config))

            assert gradcheck(call, input, fast_mode=i % 8 > 0), config
            assert gradgradcheck(call, input, fast_mode=i % 8 > 0), config


@pytest.mark.parametrize("part", range(4))
def test_max_pool2d_gradcheck_of_ties(part: int) -> None:
    # A tie is a kink, where finite differences by the input mean nothing. The choice is torch's, and for a given choice
    # the gradient is a linear function of grad_output that can be checked.
    with fastcnn.backends.fallback(False):
        for config in TIES[part::4]:
            input = input_of(config, ties=True)
            output, indices = max_pool2d(input, **options(config), return_indices=True)
            wanted, wanted_indices = F.max_pool2d(input, **options(config), return_indices=True)
            assert torch.equal(output, wanted) and torch.equal(indices, wanted_indices), config
            grad_output = gradient_like(output).requires_grad_()

            def gradient(grad_output: torch.Tensor, output: Any = output, input: Any = input) -> torch.Tensor:
                return torch.autograd.grad(output, input, grad_output, create_graph=True)[0]

            (exact,) = torch.autograd.grad(wanted, input, grad_output, retain_graph=True)
            torch.testing.assert_close(gradient(grad_output), exact, rtol=1e-14, atol=1e-14)
            assert gradcheck(gradient, grad_output, fast_mode=True), config
            assert gradgradcheck(gradient, grad_output, fast_mode=True), config


def test_max_pool2d_second_order_as_torchs() -> None:
    for name in ("alexnet", "lenet", "dilated", "no_bytes", "ceil_padded"):
        sample = MAX_SAMPLES[name]
        input = draw(sample, torch.float64, "channels_last")
        results = []
        for function in (max_pool2d, F.max_pool2d):
            (slope,) = torch.autograd.grad(function(input, **options(sample)).sin().sum(), input, create_graph=True)
            (curve,) = torch.autograd.grad(slope.square().sum(), input, create_graph=True)
            results.append((slope, curve, *torch.autograd.grad(curve.square().sum(), input)))
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


ARGUMENTS = [
    ([2, 2], [2, 2], [0, 0], [1, 1], False),
    ([3, 3], [2, 2], [1, 1], [1, 1], True),
    ([3, 2], [1, 2], [1, 0], [2, 1], False),
    ([17, 16], [2, 2], [8, 8], [1, 1], False),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_max_pool2d_opcheck(arguments: tuple[Any, ...], layout: str) -> None:
    ops, check = torch.ops.fastcnn, torch.library.opcheck
    input = with_layout(torch.randn(2, 5, 9, 8), layout).requires_grad_()
    for t in (input, input.detach()):
        check(ops.max_pool2d.default, (t, *arguments))
        check(ops.max_pool2d_with_indices.default, (t, *arguments))
        check(ops._max_pool2d_train.default, (t, *arguments))
    output, offsets = ops._max_pool2d_train(input.detach(), *arguments)
    formats = (torch.contiguous_format, torch.channels_last)
    for memory_format in formats:
        check(ops._max_pool2d_indices.default, (offsets, input.shape, *arguments, memory_format))
        for grad_output in (torch.randn_like(output), torch.randn_like(output).requires_grad_()):
            check(ops.max_pool2d_backward.default, (grad_output, offsets, input.shape, *arguments, memory_format))
    check(ops._max_pool2d_gather.default, (input, offsets, *arguments))
    check(ops.max_pool2d.default, (input[:0].detach().requires_grad_(), [2, 2]))


def test_max_pool2d_saves_one_byte_an_output_and_nothing_in_inference() -> None:
    input = draw(MAX_SAMPLES["alexnet"], layout="channels_last")
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = max_pool2d(input, 3, 2)
        assert [(t.dtype, t.numel()) for t in saved] == [(torch.uint8, output.numel())]
        saved.clear()
        max_pool2d(input, 17, 1, 8)
        assert [t.dtype for t in saved] == [torch.int32]
        saved.clear()
        max_pool2d(input.detach(), 3, 2)
        with torch.no_grad():
            max_pool2d(input, 3, 2)
        assert not saved


def test_max_pool2d_kernels_reached() -> None:
    input = torch.randn(1, 3, 6, 6, requires_grad=True)
    assert recorded(lambda: max_pool2d(input.detach(), 2)) == ["max_pool2d"]
    assert recorded(lambda: max_pool2d(input, 2, return_indices=True)) == ["max_pool2d", "max_pool2d_indices"]
    touching, overlapping = max_pool2d(input, 2), max_pool2d(input, 3, 2)
    assert recorded(lambda: touching.sum().backward()) == ["max_pool2d_backward_disjoint"]
    assert recorded(lambda: overlapping.sum().backward()) == ["max_pool2d_backward"]
    (slope,) = torch.autograd.grad(max_pool2d(input, 2).square().sum(), input, create_graph=True)
    assert "max_pool2d_gather" in recorded(lambda: slope.sum().backward())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_max_pool2d_nan_and_infinity_as_torchs(dtype: torch.dtype, layout: str) -> None:
    for name in ("lenet", "resnet", "seven", "ceil_padded", "dilated", "no_bytes"):
        sample = MAX_SAMPLES[name]
        input = draw(sample, torch.float64).detach()
        chosen = torch.rand(input.shape, generator=torch.Generator().manual_seed(4))
        input[chosen < 0.2] = math.nan
        input[(chosen > 0.2) & (chosen < 0.5)] = -math.inf
        input[(chosen > 0.5) & (chosen < 0.6)] = math.inf
        input[0, 0] = -math.inf
        input = with_layout(input.to(dtype), layout).requires_grad_()
        wanted, wanted_indices = F.max_pool2d(input, **options(sample), return_indices=True)
        output, indices = max_pool2d(input, **options(sample), return_indices=True)
        assert torch.equal(indices, wanted_indices)
        assert torch.equal(output.isnan(), wanted.isnan())
        assert torch.equal(output.nan_to_num(0.5), wanted.nan_to_num(0.5))
        assert torch.equal(max_pool2d(input.detach(), **options(sample)).nan_to_num(0.5), wanted.nan_to_num(0.5))
        grad_output = gradient_like(output)
        grad_output[0] = math.nan
        got, exact = (torch.autograd.grad(o, input, grad_output)[0] for o in (output, wanted))
        assert torch.equal(got.isnan(), exact.isnan())


def test_max_pool2d_last_nan_wins_and_first_maximum() -> None:
    input = torch.tensor([1.0, math.nan, 3.0, math.nan, 3.0, 3.0]).reshape(1, 1, 1, 6)
    assert max_pool2d(input, (1, 4), return_indices=True)[1].flatten().tolist() == [3]
    assert max_pool2d(input[..., 4:], (1, 2), return_indices=True)[1].flatten().tolist() == [0]


def test_max_pool2d_window_in_the_padding() -> None:
    # Dilation and ceil_mode leave a window without a pixel: -inf as torch, and no gradient (torch's is out of bounds).
    input = torch.ones(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    arguments = dict(stride=2, padding=1, dilation=3, ceil_mode=True)
    wanted = F.max_pool2d(input.detach(), 2, **arguments, return_indices=True)
    output, indices = max_pool2d(input, 2, **arguments, return_indices=True)
    assert torch.equal(output, wanted[0]) and torch.equal(indices, wanted[1])
    (slope,) = torch.autograd.grad(output, input, torch.ones_like(output).requires_grad_(), create_graph=True)
    assert slope.item() == 0
    assert gradgradcheck(lambda x: max_pool2d(x, 2, **arguments).clamp_min(-1e3), input)


@pytest.mark.parametrize("name", [name for name in MAX_SAMPLES if name != "no_images"])
def test_max_pool2d_result_depends_on_neither_threads_nor_batch(name: str) -> None:
    sample = {**MAX_SAMPLES[name], "n": 7}
    assert_independent_of_threads_and_batch(
        lambda x: max_pool2d(x, **options(sample)), draw(sample, layout="channels_last")
    )


def test_max_pool2d_large_maps_depend_on_neither_threads_nor_batch() -> None:
    input = draw(dict(n=3, c=70, size=(60, 61)))
    assert_independent_of_threads_and_batch(lambda x: max_pool2d(x, 3, 2, 1), input)
    assert_independent_of_threads_and_batch(lambda x: max_pool2d(x, 2, ceil_mode=True), input)


@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (2, 1, 6, 6), (1, 5, 4, 4), (2, 4, 1, 1), (0, 3, 4, 4), (1, 1, 1, 1)])
def test_max_pool2d_strides_as_torchs(shape: tuple[int, ...]) -> None:
    kernel, padding = (3, 1) if shape[2] == 1 else (2, 0)
    assert_strides_as_torchs(
        lambda x: max_pool2d(x, kernel, 2, padding), lambda x: F.max_pool2d(x, kernel, 2, padding), shape
    )
    assert_strides_as_torchs(
        lambda x: max_pool2d(x, kernel, 2, padding, return_indices=True)[1] * x.sum(),
        lambda x: F.max_pool2d(x, kernel, 2, padding, return_indices=True)[1] * x.sum(),
        shape,
        gradients=False,
    )


def test_max_pool2d_unbatched_input_as_torch() -> None:
    for input in (torch.randn(3, 7, 8), torch.randn(7, 8, 3).permute(2, 0, 1)):
        input = input.requires_grad_()
        for got, wanted in zip(
            max_pool2d(input, 3, 2, 1, return_indices=True),
            F.max_pool2d(input, 3, 2, 1, return_indices=True),
            strict=True,
        ):
            assert torch.equal(got, wanted) and got.stride() == wanted.stride()
        got, wanted = (torch.autograd.grad(f(input, 2).sum(), input)[0] for f in (max_pool2d, F.max_pool2d))
        assert torch.equal(got, wanted)


def bad_calls() -> BadCalls:
    x = torch.randn(2, 3, 6, 6)
    return {
        **bad_windows(x),
        "rank 2": ((x[0, 0], 2), {}, ("3D or 4D (batch mode)",)),
        "rank 5": ((x[None], 2), {}, ("3D or 4D (batch mode)",)),
        "dilated padding": ((x, 3, 1, 2, 2), {}, ("pad should be smaller than or equal to half of kernel size",)),
        "zero dilation": ((x, 2, 2, 0, 0), {}, ("dilation should be greater than zero",)),
        "three dilations": ((x, 2), dict(dilation=(1, 1, 1)), ("tuple of two ints",)),
        "huge dilation": ((x, 3), dict(dilation=2**62), ("value cannot be converted to type int without overflow",)),
        "large dilation": ((x, 3), dict(dilation=2**31 - 1), ("Output size is too small",)),
        "bool kernel": ((x, True), {}, ("kernel_size", "must be tuple of ints, not bool")),
        "text": ((x, "a"), {}, ("kernel_size", "must be tuple of ints, not str")),
    }


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("name", bad_calls())
def test_max_pool2d_bad_input_raises_as_torch(name: str, indices: bool) -> None:
    args, kwargs, words = bad_calls()[name]
    kwargs = {**kwargs, "return_indices": indices}
    assert_raises_like(lambda: max_pool2d(*args, **kwargs), lambda: F.max_pool2d(*args, **kwargs), *words)
    if isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
        meta = args[0].to("meta")
        assert_raises_like(lambda: max_pool2d(meta, *args[1:], **kwargs), lambda: F.max_pool2d(*args, **kwargs))


def test_max_pool2d_backward_refuses_what_does_not_fit() -> None:
    output, offsets = torch.ops.fastcnn._max_pool2d_train(
        torch.randn(1, 2, 4, 4), [2, 2], [2, 2], [0, 0], [1, 1], False
    )
    rest = ([1, 2, 4, 4], [2, 2], [2, 2], [0, 0], [1, 1], False, torch.contiguous_format)
    backward = torch.ops.fastcnn.max_pool2d_backward.default
    for bad in [
        (output[..., :1], offsets, *rest),
        (output, offsets[..., :1], *rest),
        (output, offsets.float(), *rest),
        (output, offsets, [1, 2, 6, 6], *rest[1:]),
    ]:
        with pytest.raises(RuntimeError, match="expected"):
            backward(*bad)
    # Offsets that no forward gave are harmless: they win nowhere.
    assert backward(output, torch.full_like(offsets, 255), *rest).abs().max() == 0
    gather = torch.ops.fastcnn._max_pool2d_gather.default
    assert gather(torch.ones(1, 2, 4, 4), torch.full_like(offsets, 255), *rest[1:-1]).abs().max() == 0
    with pytest.raises(NotImplementedError, match="not implemented for 'Byte'"):
        gather(torch.ones(1, 2, 4, 4, dtype=torch.uint8), offsets, *rest[1:-1])


def test_max_pool2d_takes_torchs_own_op_where_ours_cannot_follow() -> None:
    assert_takes_torchs_own_op(lambda x: max_pool2d(x, 2), lambda x: F.max_pool2d(x, 2))
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        integers = torch.randint(0, 99, (1, 2, 5, 5)).to(dtype)
        got, wanted = max_pool2d(integers, 3, 2, return_indices=True), F.max_pool2d(integers, 3, 2, return_indices=True)
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
        assert torch.equal(max_pool2d(integers, 3, 2), wanted[0])
        with fastcnn.backends.fallback(False), pytest.raises(NotImplementedError, match="fallback"):
            max_pool2d(integers, 2)
    assert max_pool2d(torch.empty(2, 3, 6, 6, device="meta"), 2).shape == (2, 3, 3, 3)


def test_max_pool2d_window_too_large_for_offsets() -> None:
    input = torch.randn(1, 2, 5, 5, requires_grad=True)
    arguments = (4097, 1, 2048)  # more than 2**24 elements
    wanted = F.max_pool2d(input, *arguments)
    assert torch.equal(max_pool2d(input.detach(), *arguments), wanted)
    assert torch.equal(max_pool2d(input, *arguments), wanted)
    got, exact = (torch.autograd.grad(f(input, *arguments).sum(), input)[0] for f in (max_pool2d, F.max_pool2d))
    assert torch.equal(got, exact)
    for requires_grad in (True, False):
        x = input.detach().requires_grad_(requires_grad)
        indices = max_pool2d(x, *arguments, return_indices=True)[1]
        assert torch.equal(indices, F.max_pool2d(x, *arguments, return_indices=True)[1])


def test_max_pool2d_compiles_without_a_graph_break() -> None:
    def step(input: torch.Tensor) -> torch.Tensor:
        output, indices = max_pool2d(input, 3, 2, 1, return_indices=True)
        return max_pool2d(input, 2).square().sum() + (output * indices).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (2, 3):
        input = torch.randn(n, 3, 8, 8, requires_grad=True)
        wanted, got = (torch.autograd.grad(f(input), input)[0] for f in (step, compiled))
        torch.testing.assert_close(got, wanted)


def test_max_pool2d_autocast_keeps_the_dtype_as_torchs() -> None:
    input = torch.randn(1, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert max_pool2d(input, 2).dtype == F.max_pool2d(input, 2).dtype
        assert max_pool2d(input.bfloat16(), 2).dtype == F.max_pool2d(input.bfloat16(), 2).dtype


def test_max_pool2d_expanded_gradient() -> None:
    input = torch.randn(2, 3, 6, 6, requires_grad=True)
    got, wanted = (torch.autograd.grad(f(input, 3, 2).sum(), input)[0] for f in (max_pool2d, F.max_pool2d))
    torch.testing.assert_close(got, wanted)
