from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from batch_norm_cases import CASES, CONDITIONS, CONFIGS, SAMPLES, Case, reference, tolerance
from conditions import assert_conditions, assert_raises_like, relative_error
from kernels import recorded
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import fastcnn
from fastcnn.ops import batch_norm

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_batch_norm_values_and_gradients(name: str, layout: str, dtype: torch.dtype, training: bool) -> None:
    case = Case(SAMPLES[name], dtype, layout, grad=True)
    exact = case.double()
    wanted_statistics, statistics = exact.statistics(), case.statistics()
    wanted = reference(exact, wanted_statistics, training)
    with fastcnn.backends.fallback(False):
        output = batch_norm(case.input, *statistics, case.weight, case.bias, training)
        gradients = torch.autograd.grad(output, (case.input, case.weight, case.bias), case.grad_output)
    assert output.dtype == dtype
    assert relative_error(output, wanted.detach()) <= tolerance(dtype)
    wanted_gradients = torch.autograd.grad(wanted, (exact.input, exact.weight, exact.bias), exact.grad_output)
    # With two rows the input's gradient is what is left of terms that cancel.
    scale = max(
        1.0, 30 * float(wanted.detach().abs().max() / wanted_gradients[0].abs().max()) if name == "two_rows" else 1
    )
    for g, w in zip(gradients, wanted_gradients, strict=True):
        assert relative_error(g, w) <= scale * tolerance(dtype)
    for s, w in zip(statistics, wanted_statistics, strict=True):
        assert relative_error(s, w) <= tolerance(dtype)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_batch_norm_half_input_with_float32_parameters(dtype: torch.dtype, training: bool) -> None:
    case = Case((4, 19, 6, 5), dtype, "channels_last", grad=True, params=torch.float32)
    exact = case.double()
    wanted_statistics, statistics = exact.statistics(), case.statistics()
    wanted = reference(exact, wanted_statistics, training)
    output = batch_norm(case.input, *statistics, case.weight, case.bias, training)
    inputs, exact_inputs = (case.input, case.weight, case.bias), (exact.input, exact.weight, exact.bias)
    gradients = torch.autograd.grad(output, inputs, case.grad_output)
    assert [t.dtype for t in (output, *gradients)] == [dtype, dtype, torch.float32, torch.float32]
    assert relative_error(output, wanted.detach()) <= tolerance(dtype)
    # What comes back in float32 was never rounded to the half type.
    for g, w in zip(gradients, torch.autograd.grad(wanted, exact_inputs, exact.grad_output), strict=True):
        assert relative_error(g, w) <= tolerance(g.dtype)
    for s, w in zip(statistics, wanted_statistics, strict=True):
        assert relative_error(s, w) <= tolerance(torch.float32)


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 0.7])
@pytest.mark.parametrize("dtype", FLOATS)
def test_batch_norm_running_statistics_as_torchs(dtype: torch.dtype, momentum: float) -> None:
    case = Case((4, 6, 5, 3), dtype)
    ours, theirs = case.statistics(), case.statistics()
    for _ in range(3):
        batch_norm(case.input, *ours, training=True, momentum=momentum)
        F.batch_norm(case.input, *theirs, training=True, momentum=momentum)
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=max(rtol, 1e-6), atol=max(rtol, 1e-6))
    batch_norm(case.input, *ours, training=False)
    torch.testing.assert_close(ours, theirs, rtol=max(rtol, 1e-6), atol=max(rtol, 1e-6))


@pytest.mark.parametrize(("running", "batch"), [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_batch_norm_update_opcheck(running: torch.dtype, batch: torch.dtype) -> None:
    statistics = (torch.zeros(5, dtype=running), torch.ones(5, dtype=running), torch.randn(5, dtype=batch))
    torch.library.opcheck(torch.ops.fastcnn._batch_norm_update.default, (*statistics, torch.ones(5), 0.1, 7))


def test_batch_norm_update_refuses_what_does_not_fit() -> None:
    update = torch.ops.fastcnn._batch_norm_update.default
    five = [torch.ones(5) for _ in range(4)]
    with pytest.raises(RuntimeError, match=r"size \[5\], but got \[8\]"):
        update(torch.ones(8), *five[1:], 0.1, 7)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training, but got 1"):
        update(*five, 0.1, 1)


def test_batch_norm_running_statistics_changed_before_the_backward_raises() -> None:
    case = Case((4, 3, 5, 2), grad=True)
    statistics = case.statistics()
    output = batch_norm(case.input, *statistics)
    batch_norm(case.input, *statistics, training=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_batch_norm_running_statistics_that_are_no_neighbours() -> None:
    case = Case((4, 6, 5, 3))
    wide, theirs = tuple(torch.ones(6, 2) for _ in range(2)), tuple(torch.ones(6) for _ in range(2))
    batch_norm(case.input, *(t[:, 0] for t in wide), training=True)
    F.batch_norm(case.input, *theirs, training=True)
    for ours, expected in zip(wide, theirs, strict=True):
        torch.testing.assert_close(ours, torch.stack([expected, torch.ones(6)], 1))


@pytest.mark.parametrize("first_row", [0.0, 1e6])
def test_batch_norm_statistics_of_a_mean_far_from_zero(first_row: float) -> None:
    input = (torch.randn(16, 24, 20, 20, generator=torch.Generator().manual_seed(0)) + 1e4).to(
        memory_format=torch.channels_last
    )
    input[0, :, 0, 0] += first_row  # the first shift of the sums, far from the mean
    _, mean, var = torch.ops.fastcnn.batch_norm_train(input, None, None, None, 1e-5, False)
    exact_var, exact_mean = torch.var_mean(input.double(), (0, 2, 3), correction=0)
    rounding = torch.finfo(torch.float32).eps * exact_mean.abs()
    assert bool(((mean - exact_mean).abs() <= rounding + 1e-6 * exact_var.sqrt()).all())
    assert float((var / exact_var - 1).abs().max()) < 1e-5
    error = float(
        (batch_norm(input, None, None, training=True) - F.batch_norm(input.double(), None, None, training=True))
        .abs()
        .max()
    )
    assert error < (1e-4 if first_row else 1e-5)


def test_batch_norm_configurations_cover_conditions() -> None:
    assert len(CONFIGS) >= 300
    assert_conditions(CONFIGS, CONDITIONS)


@pytest.mark.parametrize("part", range(8))
def test_batch_norm_gradcheck(part: int) -> None:
    with fastcnn.backends.fallback(False):
        for config in CONFIGS[part::8]:
            case = Case(config["shape"], torch.float64, config["layout"], grad=True, seed=config["seed"])
            chosen = [case.input] + [t for t, name in ((case.weight, "weight"), (case.bias, "bias")) if config[name]]

            def call(input: Tensor, *affine: Tensor, config: Any = config, case: Case = case) -> Tensor:
                rest = list(affine)
                weight, bias = (rest.pop(0) if config[name] else None for name in ("weight", "bias"))
                statistics = case.statistics() if config["statistics"] else (None, None)
                return batch_norm(input, *statistics, weight, bias, config["training"], 0.1, config["eps"])

            assert gradcheck(call, chosen, fast_mode=True), config
            assert gradgradcheck(call, chosen, fast_mode=True), config


def test_batch_norm_third_derivative() -> None:
    case = Case((4, 2, 2, 1), torch.float64, grad=True)

    def slope(input: Tensor, weight: Tensor) -> Tensor:
        output = batch_norm(input, None, None, weight, case.bias.detach(), True, eps=0.1)
        return torch.autograd.grad(output.sin().sum(), input, create_graph=True)[0]

    assert gradgradcheck(slope, (case.input, case.weight))


def ops_and_arguments(relu: bool, training: bool, layout: str) -> list[tuple[Any, tuple[Any, ...]]]:
    """Each op of one mode with arguments for opcheck."""
    case = Case((3, 10, 3, 2), torch.float32, layout, grad=True)
    ops, affine = torch.ops.fastcnn, (case.weight, case.bias, case.residual, 1e-5, relu)
    if training:
        _, mean, var, mask = ops._batch_norm_train(case.input, *affine)
        forwards = [(ops.batch_norm_train.default, (case.input, *affine))]
        forwards += [(ops._batch_norm_train.default, (case.input, *affine))]
        backward = ops.batch_norm_train_backward.default
    else:
        mean, var = case.statistics()
        _, mask = ops._batch_norm_infer(case.input, mean, var, *affine)
        forwards = [(ops.batch_norm_infer.default, (case.input, mean, var, *affine))]
        forwards += [(ops._batch_norm_infer.default, (case.input, mean, var, *affine))]
        backward = ops.batch_norm_infer_backward.default
    grad = case.grad_output.requires_grad_()
    saved = (grad, case.input, mean.detach(), var.detach(), case.weight, mask, 1e-5)
    return [*forwards, *((backward, (*saved, m)) for m in ([True] * 4, [False, True, False, relu]))]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_batch_norm_opcheck(relu: bool, training: bool) -> None:
    for op, args in ops_and_arguments(relu, training, "channels_last" if relu else "contiguous"):
        torch.library.opcheck(op, args)


def test_batch_norm_opcheck_of_sparse_arguments() -> None:
    input, (mean, var) = torch.randn(4, 3, 5, requires_grad=True), (torch.zeros(3), torch.ones(3))
    torch.library.opcheck(torch.ops.fastcnn.batch_norm_train.default, (input, None, None, None, 1e-5, False))
    half, weight = torch.randn(4, 3).bfloat16().requires_grad_(), torch.ones(3, requires_grad=True)
    torch.library.opcheck(torch.ops.fastcnn.batch_norm_train.default, (half, weight, None, None, 1e-5, True))
    torch.library.opcheck(torch.ops.fastcnn.batch_norm_infer.default, (half, mean, var, None, weight, None, 0.0, False))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_fallback_computes_the_same(training: bool) -> None:
    # The kernels for other devices, run here on CPU tensors.
    elsewhere = torch._C.DispatchKeySet(torch._C.DispatchKey.XPU)
    for relu in (True, False):
        for op, args in ops_and_arguments(relu, training, "channels_last"):
            with torch.no_grad():
                wanted, got = op(*args), op.redispatch(elsewhere, *args)
            if isinstance(wanted, Tensor):
                wanted, got = (wanted,), (got,)
            for w, g in zip(wanted, got, strict=True):
                torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)
            with (
                fastcnn.backends.fallback(False),
                torch.no_grad(),
                pytest.raises(NotImplementedError, match="fallback"),
            ):
                op.redispatch(elsewhere, *args)


@pytest.mark.parametrize("shape", [(4, 5), (3, 5, 4), (2, 5, 3, 4), (2, 5, 1, 1), (2, 1, 3, 3), (2, 3, 2, 3, 2)])
def test_batch_norm_output_has_torchs_strides(shape: tuple[int, ...]) -> None:
    inputs = [
        torch.randn(shape),
        torch.randn(shape).movedim(1, -1).contiguous().movedim(-1, 1),
        torch.randn(*shape, 2)[..., 0],
    ]
    for input in inputs:
        if shape[1] == 1 and not input.is_contiguous():
            continue  # torch takes another of several equal layouts
        input.requires_grad_()
        for training in (True, False):
            results = []
            for function in (batch_norm, F.batch_norm):
                output = function(input, torch.zeros(shape[1]), torch.ones(shape[1]), training=training)
                results.append((output.stride(), torch.autograd.grad(output.square().sum(), input)[0].stride()))
            assert results[0] == results[1]


@pytest.mark.parametrize("name", ["many_tiles", "many_tiles_of_channels", "one_hundred_thirty", "sequence"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_norm_result_depends_on_neither_threads_nor_batch(name: str, dtype: torch.dtype) -> None:
    case = Case(SAMPLES[name], dtype, grad=True)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            statistics = case.statistics()
            output = batch_norm(case.input, *statistics, case.weight, case.bias, True)
            gradients = torch.autograd.grad(output, (case.input, case.weight, case.bias), case.grad_output)
            results.append((output, *gradients, *statistics))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            assert torch.equal(a, b)
    args = (*case.statistics(), case.weight, case.bias)
    alone = torch.cat([batch_norm(case.input[i : i + 1], *args) for i in range(2)])
    assert torch.equal(alone, batch_norm(case.input, *args)[:2])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("where", [(0, 1, 0, 0), (2, 1, 3, 2)])
def test_batch_norm_nan_and_infinity_as_torch(where: tuple[int, ...], layout: str, value: float) -> None:
    case = Case((3, 4, 5, 4), layout=layout)
    case.input[where] = value
    for training in (True, False):
        results = []
        for function in (batch_norm, F.batch_norm):
            statistics = case.statistics()
            results.append((function(case.input, *statistics, case.weight, case.bias, training), *statistics))
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2, 2), (2, 3, 0, 2), (2, 0, 2, 2)])
def test_batch_norm_of_nothing_as_torch(shape: tuple[int, ...]) -> None:
    for training in (True, False):
        results = []
        for function in (batch_norm, F.batch_norm):
            input, c = torch.zeros(shape, requires_grad=True), shape[1]
            weight = torch.ones(c, requires_grad=True) if c else None
            statistics = torch.full((c,), 0.5), torch.full((c,), 2.0)
            output = function(input, *statistics, weight, None, training)
            gradients = torch.autograd.grad(output.sum(), [t for t in (input, weight) if t is not None])
            results.append((output, *gradients, *statistics))
        for got, wanted in zip(*results, strict=True):
            assert got.shape == wanted.shape
            assert torch.equal(got, wanted)


def bad_calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any], tuple[str, ...]]]:
    x, zeros, ones = torch.randn(2, 3, 4, 4), torch.zeros(3), torch.ones(3)
    train = dict(training=True)
    double = zeros.double()
    return {
        "rank 1": ((torch.randn(3), zeros, ones), {}, ()),
        "rank 1 in training": ((torch.randn(3), zeros, ones), train, ()),
        "rank 0": ((torch.tensor(1.0), zeros, ones), {}, ()),
        "one value": (
            (torch.randn(1, 3), None, None),
            train,
            ("Expected more than 1 value per channel when training",),
        ),
        "one pixel": ((torch.randn(1, 3, 1, 1), zeros, ones), train, ("more than 1 value per channel", "1, 3, 1, 1")),
        "running_mean": ((x, torch.zeros(4), ones), {}, ("running_mean should contain 3 elements not 4",)),
        "running_mean in training": (
            (x, torch.zeros(4), ones),
            train,
            ("running_mean should contain 3 elements not 4",),
        ),
        "running_var": ((x, zeros, torch.ones(2)), {}, ("running_var should contain 3 elements not 2",)),
        "running_var in training": ((x, zeros, torch.ones(2)), train, ("running_var should contain 3 elements not 2",)),
        "weight": ((x, zeros, ones, torch.ones(5)), {}, ("weight should contain 3 elements not 5",)),
        "weight in training": ((x, zeros, ones, torch.ones(5)), train, ("weight should contain 3 elements not 5",)),
        "bias": ((x, zeros, ones, ones, torch.ones(1)), {}, ("bias should contain 3 elements not 1",)),
        "rank of running_mean": ((x, torch.zeros(3, 1), ones), {}, ()),
        "no statistics": ((x, None, None), {}, ("running_mean must be defined in evaluation mode",)),
        "no running_var": ((x, zeros, None), {}, ("running_var must be defined in evaluation mode",)),
        "only running_mean": ((x, zeros, None), train, ("must either both be None or neither be None",)),
        "only running_var": ((x, None, ones), train, ("must either both be None or neither be None",)),
        "eps 0 in training": ((x, zeros, ones), dict(training=True, eps=0.0), ("eps must be positive", "0")),
        "negative eps": ((x, zeros, ones), dict(eps=-1.0), ("eps must be non-negative", "-1")),
        "weight dtype": ((x, zeros, ones, ones.double()), {}, ("mixed dtype",)),
        "weight dtype in training": ((x, zeros, ones, ones.double()), train, ("mixed dtype",)),
        "statistics dtype": ((x, double, ones.double()), {}, ("mixed dtype",)),
        "statistics dtype in training": ((x, double, ones.double()), train, ("mixed dtype",)),
        "double input": ((x.double(), zeros, ones), {}, ("mixed dtype",)),
        "half statistics": ((x.bfloat16(), zeros.half(), ones.half()), {}, ("mixed dtype",)),
        "half weight": ((x.bfloat16(), zeros, ones, ones.bfloat16()), {}, ("expected scalar type", "found")),
        "half weight in training": (
            (x.bfloat16(), zeros, ones, ones.bfloat16()),
            train,
            ("expected scalar type", "found"),
        ),
        "integers": ((x.long(), zeros, ones), {}, ()),
        "integers in training": ((x.long(), None, None), train, ("not implemented for 'Long'",)),
        "complex": ((x.to(torch.complex64), None, None), train, ("not implemented for 'ComplexFloat'",)),
        "weight on another device": ((x, zeros, ones, ones.to("meta")), {}, ("not on the expected device",)),
        "no momentum": ((x, zeros, ones), dict(training=True, momentum=None), ()),
        "not a tensor": (([1.0], zeros, ones), {}, ()),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_batch_norm_bad_input_raises_as_torch(name: str) -> None:
    args, kwargs, words = bad_calls()[name]
    assert_raises_like(lambda: batch_norm(*args, **kwargs), lambda: F.batch_norm(*args, **kwargs), *words)


@pytest.mark.parametrize("name", ["rank 1", "one value", "running_mean", "weight", "eps 0 in training", "weight dtype"])
def test_batch_norm_bad_input_raises_as_torch_while_tracing(name: str) -> None:
    args, kwargs, _ = bad_calls()[name]
    with pytest.raises(Exception) as expected:
        F.batch_norm(*args, **kwargs)
    with torch._subclasses.FakeTensorMode() as mode, pytest.raises(expected.type):
        batch_norm(*(mode.from_tensor(t) if isinstance(t, Tensor) else t for t in args), **kwargs)


def test_batch_norm_residual_of_another_shape_or_dtype_raises() -> None:
    x, op = torch.randn(2, 3, 4, 4), torch.ops.fastcnn.batch_norm_train
    with pytest.raises(
        RuntimeError, match=r"residual of input's size \[2, 3, 4, 4\], but got residual of size \[2, 3, 4, 1\]"
    ):
        op(x, None, None, x[..., :1], 1e-5, True)
    with pytest.raises(RuntimeError, match="residual type"):
        op(x, None, None, x.double(), 1e-5, True)


def test_batch_norm_takes_torchs_own_op_where_ours_cannot_follow() -> None:
    case = Case((3, 4, 5, 2))
    args = (*case.statistics(), case.weight, case.bias)
    expected = F.batch_norm(case.input, *args)

    class Subclass(torch.Tensor):
        pass

    def jvp() -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(batch_norm(forward_ad.make_dual(case.input, case.input), *args)).primal

    calls = {
        "vmap": lambda: torch.vmap(lambda x: batch_norm(x.unsqueeze(0), *args))(case.input).squeeze(1),
        "functional grad": lambda: torch.func.vjp(lambda x: batch_norm(x, *args), case.input)[0],
        "forward mode": jvp,
        "subclass": lambda: batch_norm(case.input.as_subclass(Subclass), *args).as_subclass(torch.Tensor),
    }
    for name, call in calls.items():
        torch.testing.assert_close(call(), expected, msg=lambda m, name=name: f"{name}: {m}")
        with fastcnn.backends.fallback(False), pytest.raises(NotImplementedError, match="fallback"):
            call()
    assert batch_norm(case.input.to("meta"), None, None, training=True).shape == expected.shape


def test_batch_norm_autocast_keeps_the_dtype_as_torch() -> None:
    case = Case((3, 4, 5, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for input in (case.input, case.input.bfloat16()):
            args = (input, *case.statistics(), case.weight, case.bias, True)
            assert batch_norm(*args).dtype == F.batch_norm(*args).dtype == input.dtype


def test_batch_norm_compiles_without_a_graph_break() -> None:
    case = Case((3, 4, 5, 5), grad=True)
    for training in (True, False):

        def step(input: Tensor, mean: Tensor, var: Tensor, training: bool = training) -> Tensor:
            return batch_norm(input, mean, var, case.weight, case.bias, training).square()

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
        for n in (2, 3):
            results = []
            for function in (step, compiled):
                statistics = case.statistics()
                output = function(case.input[:n], *statistics)
                results.append((output, *torch.autograd.grad(output.sum(), (case.weight, case.bias)), *statistics))
            torch.testing.assert_close(*results)


def test_batch_norm_no_gradient_asked_for_none_computed() -> None:
    case = Case((3, 4, 5, 2), grad=True)
    frozen = batch_norm(case.input, *case.statistics(), case.weight.detach(), case.bias.detach())
    assert recorded(lambda: torch.autograd.grad(frozen.sum(), case.input)) == ["batch_norm_grad_input"]
    output = batch_norm(case.input.detach(), None, None, case.weight, case.bias, True)
    assert recorded(lambda: output.sum().backward()) == ["batch_norm_grad_sums"]
    assert recorded(lambda: batch_norm(case.input, *case.statistics())) == ["batch_norm_apply"]


def test_batch_norm_expanded_gradient_and_input() -> None:
    input = torch.randn(3, 4, 1, requires_grad=True)
    for function in (batch_norm, F.batch_norm):
        output = function(input.expand(3, 4, 6), None, None, training=True, eps=0.1)
        input.grad = None
        (output * torch.arange(12.0).view(3, 4, 1)).sum().backward()
        gradient = input.grad if function is batch_norm else gradient  # noqa: F821
    torch.testing.assert_close(gradient, input.grad)
