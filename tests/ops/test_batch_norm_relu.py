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
from fastcnn.ops import batch_norm_relu

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def torchs(*args: Any, residual: Tensor | None = None, **kwargs: Any) -> Tensor:
    output = F.batch_norm(*args, **kwargs)
    return F.relu(output if residual is None else output + residual)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_batch_norm_relu_values_and_gradients(
    name: str, layout: str, dtype: torch.dtype, residual: bool, training: bool
) -> None:
    case = Case(SAMPLES[name], dtype, layout, grad=True)
    exact = case.double()
    wanted_statistics, statistics = exact.statistics(), case.statistics()
    before = reference(exact, wanted_statistics, training, residual)
    with fastcnn.backends.fallback(False):
        output = batch_norm_relu(
            case.input, *statistics, case.weight, case.bias, training, residual=case.residual if residual else None
        )
        inputs = (case.input, case.weight, case.bias) + ((case.residual,) if residual else ())
        gradients = torch.autograd.grad(output, inputs, case.grad_output)
    assert output.dtype == dtype
    assert relative_error(output, F.relu(before).detach()) <= tolerance(dtype)
    # Nearly everywhere it is clear what the ReLU cuts; the gradients are compared for what ours cut.
    passed = output > 0
    assert torch.equal(passed, before > 0) or float(
        before.detach()[passed != (before > 0)].abs().max()
    ) < 10 * tolerance(dtype)
    exact_inputs = (exact.input, exact.weight, exact.bias) + ((exact.residual,) if residual else ())
    wanted_gradients = torch.autograd.grad(before, exact_inputs, exact.grad_output * passed)
    scale = max(1.0, 30 / float(wanted_gradients[0].abs().max())) if name == "two_rows" else 1.0
    for g, w in zip(gradients, wanted_gradients, strict=True):
        assert relative_error(g, w) <= scale * tolerance(dtype)
    for s, w in zip(statistics, wanted_statistics, strict=True):
        assert relative_error(s, w) <= tolerance(dtype)


def test_batch_norm_relu_configurations_cover_conditions() -> None:
    assert len(CONFIGS) >= 300
    assert_conditions(CONFIGS, CONDITIONS)


def away_from_the_kink(config: dict[str, Any]) -> tuple[Case, Any]:
    """The first draw in which no value before the ReLU is close to zero, and its call with the chosen arguments."""
    for seed in range(config["seed"], config["seed"] + 1000):
        case = Case(config["shape"], torch.float64, config["layout"], grad=True, seed=seed)

        def call(input: Tensor, *rest: Tensor, op: Any = batch_norm_relu, case: Case = case) -> Tensor:
            given = list(rest)
            weight, bias, residual = (given.pop(0) if config[k] else None for k in ("weight", "bias", "residual"))
            statistics = case.statistics() if config["statistics"] else (None, None)
            if op is not batch_norm_relu:
                output = F.batch_norm(input, *statistics, weight, bias, config["training"], 0.1, config["eps"])
                return output if residual is None else output + residual
            return op(input, *statistics, weight, bias, config["training"], 0.1, config["eps"], residual)

        chosen = [case.input, *(getattr(case, k) for k in ("weight", "bias", "residual") if config[k])]
        if float(call(*chosen, op=None).abs().min()) > 3e-3:
            return chosen, call
    raise AssertionError(f"no draw of {config} keeps away from the kink")


@pytest.mark.parametrize("part", range(8))
def test_batch_norm_relu_gradcheck(part: int) -> None:
    with fastcnn.backends.fallback(False):
        for config in CONFIGS[part::8]:
            chosen, call = away_from_the_kink(config)
            assert gradcheck(call, chosen, fast_mode=True), config
            assert gradgradcheck(call, chosen, fast_mode=True), config


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 16, 17, 64, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_norm_relu_mask_is_one_bit_an_element(channels: int, dtype: torch.dtype) -> None:
    case = Case((3, channels, 4, 5), dtype, "channels_last")
    args = (case.weight, case.bias, case.residual, 1e-5)
    output, _, _, mask = torch.ops.fastcnn._batch_norm_train(case.input, *args, True)
    assert mask.dtype == torch.uint8
    assert mask.shape == (60, math.ceil(channels / 8))
    bits = (mask.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    bits = bits.flatten(1)
    assert torch.equal(bits[:, :channels].bool(), output.permute(0, 2, 3, 1).reshape(60, channels) > 0)
    assert not bits[:, channels:].any()
    assert torch.ops.fastcnn._batch_norm_train(case.input, *args, False)[3].shape == (0,)


@pytest.mark.parametrize("name", ["many_tiles", "many_tiles_of_channels", "one_hundred_thirty", "sequence"])
def test_batch_norm_relu_result_depends_on_neither_threads_nor_batch(name: str) -> None:
    case = Case(SAMPLES[name], grad=True)
    inputs = (case.input, case.weight, case.bias, case.residual)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            output = batch_norm_relu(case.input, None, None, case.weight, case.bias, True, residual=case.residual)
            results.append((output, *torch.autograd.grad(output, inputs, case.grad_output)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            assert torch.equal(a, b)
    args = (*case.statistics(), case.weight, case.bias)
    alone = [batch_norm_relu(case.input[i : i + 1], *args, residual=case.residual[i : i + 1]) for i in range(2)]
    assert torch.equal(torch.cat(alone), batch_norm_relu(case.input, *args, residual=case.residual)[:2])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("target", ["input", "residual"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_batch_norm_relu_nan_and_infinity_as_torch(layout: str, target: str, value: float) -> None:
    case = Case((3, 9, 5, 4), layout=layout, grad=True)
    with torch.no_grad():
        getattr(case, target)[1, 8, 0, 1] = value
    inputs = (case.input, case.weight, case.bias, case.residual)
    for training in (True, False):
        results = []
        for function in (batch_norm_relu, torchs):
            output = function(case.input, *case.statistics(), case.weight, case.bias, training, residual=case.residual)
            results.append((output, *torch.autograd.grad(output, inputs, case.grad_output)))
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2, 2), (2, 3, 0, 2), (2, 0, 2, 2)])
def test_batch_norm_relu_of_nothing_as_torch(shape: tuple[int, ...]) -> None:
    for training in (True, False):
        results = []
        for function in (batch_norm_relu, torchs):
            input, statistics = torch.zeros(shape, requires_grad=True), (torch.zeros(shape[1]), torch.ones(shape[1]))
            output = function(input, *statistics, training=training, residual=torch.zeros(shape))
            results.append((output, torch.autograd.grad(output.sum(), input)[0], *statistics))
        for got, wanted in zip(*results, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.randn(3), torch.zeros(3), torch.ones(3)), {}),
        ((torch.randn(1, 3), None, None), dict(training=True)),
        ((torch.randn(2, 3), torch.zeros(2), torch.ones(3)), {}),
        ((torch.randn(2, 3), None, None), {}),
        ((torch.randn(2, 3), None, None), dict(training=True, eps=-1.0)),
        ((torch.randn(2, 3), None, None, torch.ones(3).double()), dict(training=True)),
        ((torch.randn(2, 3), None, None), dict(training=True, residual=torch.randn(3, 3))),
    ],
)
def test_batch_norm_relu_bad_input_raises_as_torch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert_raises_like(lambda: batch_norm_relu(*args, **kwargs), lambda: torchs(*args, **kwargs))


def test_batch_norm_relu_takes_torchs_own_op_where_ours_cannot_follow() -> None:
    case = Case((3, 4, 5, 2))
    args = (*case.statistics(), case.weight, case.bias)
    expected = torchs(case.input, *args, residual=case.residual)

    def jvp() -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(case.input, case.input)
            return forward_ad.unpack_dual(batch_norm_relu(dual, *args, residual=case.residual)).primal

    calls = {
        "functional grad": lambda: torch.func.vjp(
            lambda x: batch_norm_relu(x, *args, residual=case.residual), case.input
        )[0],
        "forward mode": jvp,
    }
    for call in calls.values():
        torch.testing.assert_close(call(), expected)
        with fastcnn.backends.fallback(False), pytest.raises(NotImplementedError, match="fallback"):
            call()


def test_batch_norm_relu_compiles_without_a_graph_break() -> None:
    case = Case((3, 4, 5, 5), layout="channels_last", grad=True)

    def step(input: Tensor, residual: Tensor) -> Tensor:
        return batch_norm_relu(input, None, None, case.weight, case.bias, True, residual=residual).square()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (2, 3):
        results = []
        for function in (step, compiled):
            output = function(case.input[:n], case.residual[:n])
            results.append(torch.autograd.grad(output.sum(), (case.input, case.weight, case.bias, case.residual)))
        torch.testing.assert_close(*results)


def test_batch_norm_relu_keeps_only_what_the_backward_needs() -> None:
    case = Case((3, 16, 5, 5), layout="channels_last", grad=True)
    saved: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        batch_norm_relu(case.input, None, None, case.weight, case.bias, True, residual=case.residual)
    sizes = sorted(t.numel() * t.element_size() for t in saved)
    elements = case.input.numel()
    assert sizes == [64, 64, 64, elements // 8, 4 * elements]
    with torch.no_grad():
        assert recorded(lambda: batch_norm_relu(case.input, *case.statistics())) == ["batch_norm_apply"]


@pytest.mark.parametrize("channels", [3, 16, 21])
def test_batch_norm_relu_gradients_of_a_part_of_a_larger_gradient(channels: int) -> None:
    torch.manual_seed(0)
    exact = torch.randn(3, channels, 5, 4, dtype=torch.float64, requires_grad=True)
    whole = torch.randn(3, channels + 9, 5, 4).to(memory_format=torch.channels_last)
    part = whole.narrow(1, 4, channels)  # what the backward of a concatenation gives
    input = exact.detach().float().to(memory_format=torch.channels_last).requires_grad_()
    (wanted,) = torch.autograd.grad(F.batch_norm(exact, None, None, training=True).relu(), exact, part.double())
    (got,) = torch.autograd.grad(batch_norm_relu(input, None, None, training=True), input, part)
    assert relative_error(got, wanted) < 1e-5


def test_batch_norm_relu_results_that_go_around_the_caches() -> None:
    case = Case((8, 80, 60, 56), layout="channels_last", grad=True)  # 8.6 MB of float32, rows of whole cache lines
    exact = case.double()
    output = batch_norm_relu(case.input, None, None, case.weight, case.bias, True, residual=case.residual)
    grads = torch.autograd.grad(output, (case.input, case.residual), case.grad_output)
    expected = F.batch_norm(exact.input, None, None, exact.weight, exact.bias, True) + exact.residual
    # Where rounding decides whether an element is above zero, its gradient may be either.
    sure = expected.detach().abs() > 1e-4
    torch.testing.assert_close(output.double(), expected.relu(), rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad(expected.relu(), (exact.input, exact.residual), exact.grad_output)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad.double()[sure], want[sure], rtol=1e-4, atol=1e-4)
