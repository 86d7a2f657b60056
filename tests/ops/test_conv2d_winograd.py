"""Winograd's algorithm against float64, forced, and what the switches make of the choice."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conditions import HALF, with_layout
from kernels import recorded
from torch import Tensor

from fastcnn import backends
from fastcnn.ops import conv2d

KERNELS = {"winograd_f4x3": 3, "winograd_f2x3": 3, "winograd_f2x5": 5}
# Tiles that fill the map and that do not, channels around the widths of 4, 8 and 16 lanes, uneven padding.
SAMPLES: dict[str, dict[str, Any]] = {
    "whole_tiles": dict(n=1, c=16, k=16, size=(8, 8), padding=1),
    "cut_tiles": dict(n=2, c=17, k=33, size=(7, 9), padding=1),
    "one_pixel": dict(n=1, c=3, k=5, size=(1, 1), padding=2),
    "no_padding": dict(n=2, c=5, k=70, size=(6, 7), padding=0),
    "large_padding": dict(n=1, c=8, k=15, size=(5, 6), padding=6),
    "grouped": dict(n=2, c=36, k=18, size=(7, 7), padding=1, groups=2),
    "many_tiles": dict(n=3, c=31, k=24, size=(30, 29), padding=2),
    "more_channels_than_a_chain": dict(n=1, c=520, k=16, size=(4, 4), padding=1),
}
# The weights' transform is made one group of lanes after the other, and the last image of the input by itself.
LARGE = dict(n=9, c=512, k=400, size=(7, 7), padding=1)


def run(sample: dict[str, Any], kernel: int, dtype: torch.dtype, layout: str = "channels_last") -> dict[str, Any]:
    """The samples' tensors, and forward, activated and gradients in float64."""
    generator = torch.Generator().manual_seed(3)
    n, c, k, groups = sample["n"], sample["c"], sample["k"], sample.get("groups", 1)
    # Layers follow a ReLU.
    input = torch.randn(n, c, *sample["size"], generator=generator, dtype=torch.float64).relu()
    weight = torch.randn(k, c // groups, kernel, kernel, generator=generator, dtype=torch.float64)
    weight *= (weight[0].numel()) ** -0.5
    bias = torch.randn(k, generator=generator, dtype=torch.float64)
    made = [with_layout(t.to(dtype), layout) if t.dim() == 4 else t.to(dtype) for t in (input, weight, bias)]
    options = dict(padding=sample["padding"], groups=groups)
    exact = [t.double().requires_grad_() for t in made]
    output = F.conv2d(*exact, **options)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(dtype)
    gradients = torch.autograd.grad(output, exact, grad.double())
    return dict(made=made, options=options, grad=grad, output=output.detach(), gradients=gradients)


def errors(got: Tensor, exact: Tensor) -> tuple[float, float]:
    """The rms and the largest error, over the exact result's rms; of the half types beyond one rounding."""
    assert got.shape == exact.shape
    scale = exact.square().mean().sqrt().clamp_min(1e-30)
    rounding = torch.finfo(got.dtype).eps / 2 if got.dtype in HALF else 0.0
    difference = ((got.detach().double() - exact).abs() - rounding * exact.abs()).clamp_min(0)
    return float(difference.square().mean().sqrt() / scale), float(difference.abs().max() / scale)


def bounds(dtype: torch.dtype) -> tuple[float, float]:
    return (1e-13, 1e-12) if dtype == torch.float64 else (1e-5, 1e-4)


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        *itertools.product([torch.float32, torch.float64], ["channels_last", "contiguous", "strided"]),
        *itertools.product(HALF, ["channels_last"]),
    ],
)
@pytest.mark.parametrize("algorithm", KERNELS)
@pytest.mark.parametrize("name", SAMPLES)
def test_winograd_values_and_gradients(name: str, algorithm: str, dtype: torch.dtype, layout: str) -> None:
    case = run(SAMPLES[name], KERNELS[algorithm], dtype, layout)
    tensors = [t.requires_grad_() for t in case["made"]]
    with backends.fallback(False), backends.conv2d_algorithm(algorithm):
        output = conv2d(*tensors, **case["options"])
        gradients = torch.autograd.grad(output, tensors, case["grad"])
        activated = conv2d(*tensors, **case["options"], activation="relu")
    rms, largest = bounds(dtype)
    for got, exact in zip(
        (output, activated, *gradients), (case["output"], case["output"].relu(), *case["gradients"]), strict=True
    ):
        assert errors(got, exact) <= (rms, 1.0)
        assert errors(got, exact)[1] <= largest


@pytest.mark.parametrize("algorithm", ["winograd_f4x3", "winograd_f2x3"])
def test_winograd_values_of_many_channels(algorithm: str) -> None:
    case = run(LARGE, 3, torch.float32)
    with backends.conv2d_algorithm(algorithm):
        input, weight, bias = case["made"]
        output = conv2d(input, weight, bias, **case["options"])
        grad_input, grad_weight, _ = torch.ops.fastcnn.conv2d_backward(
            case["grad"], input, weight, [1, 1], [1, 1], [1, 1], 1, [True, True, False]
        )
    for got, exact in (
        (output, case["output"]),
        (grad_input, case["gradients"][0]),
        (grad_weight, case["gradients"][1]),
    ):
        rms, largest = errors(got, exact)
        assert rms <= 1e-5 and largest <= 1e-4


@pytest.mark.parametrize("algorithm", KERNELS)
@pytest.mark.parametrize("sample", [SAMPLES["many_tiles"], LARGE], ids=["by_tiles", "by_lanes"])
def test_winograd_result_depends_on_neither_threads_nor_batch(algorithm: str, sample: dict[str, Any]) -> None:
    if sample is LARGE and KERNELS[algorithm] == 5:
        sample = {**LARGE, "k": 80}
    case = run({**sample, "n": 3}, KERNELS[algorithm], torch.float32)
    input, weight, bias = (t.requires_grad_() for t in case["made"])
    results = []
    with backends.conv2d_algorithm(algorithm):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            output = conv2d(input, weight, bias, **case["options"])
            results.append((output, *torch.autograd.grad(output, (input, weight), case["grad"])))
        alone = conv2d(input[1:2], weight, bias, **case["options"])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert torch.equal(alone, results[0][0][1:2])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("algorithm", KERNELS)
def test_winograd_nan_and_infinity_reach_whole_tiles_and_no_others(algorithm: str, value: float) -> None:
    kernel = KERNELS[algorithm]
    case = run(dict(n=2, c=19, k=20, size=(20, 20), padding=kernel // 2), kernel, torch.float32)
    input, weight, bias = case["made"]
    input[1, 3, 9, 10] = value
    expected = F.conv2d(input, weight, bias, **case["options"])
    with backends.conv2d_algorithm(algorithm):
        output = conv2d(input, weight, bias, **case["options"])
    assert (~output.isfinite())[~expected.isfinite()].all()
    tile = 4 if algorithm == "winograd_f4x3" else 2
    touched = F.max_pool2d((~expected.isfinite()).float(), tile)
    touched = F.interpolate(touched, scale_factor=tile)
    assert output[touched == 0].isfinite().all()
    with backends.winograd(False), backends.fallback(False):
        direct = conv2d(input, weight, bias, **case["options"])
    assert torch.equal(direct.isnan(), expected.isnan()) and torch.equal(direct.isinf(), expected.isinf())


def kernels_of(n: int, c: int, size: int, backward: bool = False) -> list[str]:
    input = torch.randn(n, c, size, size).to(memory_format=torch.channels_last).requires_grad_(backward)
    weight = torch.randn(c, c, 3, 3).to(memory_format=torch.channels_last)

    def call() -> None:
        output = conv2d(input, weight, padding=1)
        if backward:
            output.sum().backward()

    return recorded(call)


def test_rule_takes_winograd_where_it_pays_and_the_switch_turns_it_off() -> None:
    assert kernels_of(8, 64, 24) == ["winograd_f4x3"]
    with backends.winograd(False):
        assert kernels_of(8, 64, 24)[0] in ("conv2d_direct", "aten")
        with backends.fallback(False):
            assert kernels_of(8, 64, 24) == ["conv2d_direct"]
    assert kernels_of(8, 64, 24) == ["winograd_f4x3"]


def test_backward_runs_under_its_forwards_switches() -> None:
    with backends.winograd(False), backends.fallback(False):
        input = torch.randn(8, 64, 24, 24, requires_grad=True)
        output = conv2d(input, torch.randn(64, 64, 3, 3), padding=1)
    assert recorded(lambda: output.sum().backward()) == ["conv2d_direct"]


def test_switches_belong_to_a_thread() -> None:
    found: list[list[str]] = []
    with backends.conv2d_algorithm("direct"):
        thread = threading.Thread(target=lambda: found.append(kernels_of(8, 64, 24)))
        thread.start()
        thread.join()
        assert kernels_of(8, 64, 24) == ["conv2d_direct"]
    assert found == [["winograd_f4x3"]]


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_batch_invariant_results_are_the_same_in_any_batch(kernel: int) -> None:
    torch.manual_seed(0)
    for c, k, size in ((16, 48, 5), (64, 64, 14), (256, 64, 6), (24, 512, 3)):
        input, weight = torch.randn(32, c, size, size), torch.randn(k, c, kernel, kernel)
        with backends.batch_invariant(True):
            whole = conv2d(input, weight, padding=kernel // 2)
            for n in (1, 2, 9):
                assert torch.equal(conv2d(input[:n], weight, padding=kernel // 2), whole[:n])


def test_unknown_algorithm_is_refused_with_the_names() -> None:
    with pytest.raises(ValueError, match=r"conv2d_algorithm: expected one of automatic, .* but got 'winnograd'"):
        backends.conv2d_algorithm("winnograd")
    assert kernels_of(1, 16, 3)


def test_forced_algorithm_that_does_not_apply_gives_way_to_the_direct_kernels() -> None:
    with backends.conv2d_algorithm("winograd_f2x5"):
        assert kernels_of(1, 16, 6) == ["conv2d_direct"]
