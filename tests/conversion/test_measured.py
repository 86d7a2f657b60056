"""fastcnn.convert with an example: what the measurement says is done, and remembered."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fastcnn
from fastcnn.conversion import measured as measured_module
from fastcnn.conversion.plan import plan
from fastcnn.explanation import LayerTime
from fastcnn.explanation import measure as measure_module


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))


Times = dict[str, tuple[Any, ...]]  # a layer's that differs from torch's says how


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[Times], None]:
    """Sets what layers take, {name: (ours, torch's)} in ms, and how their results differ, if so."""

    def row(name: str, ours: float, theirs: float, mismatch: str = "") -> SimpleNamespace:
        times = {"ours_total_ms": ours, "torch_total_ms": theirs, "measured": ours == ours}
        return SimpleNamespace(name=name, calls=1, mismatch=mismatch, **times)

    def set_times(layers: Times) -> None:
        monkeypatch.setattr(measured_module, "measure_layers", lambda *_, **__: [row(n, *t) for n, t in layers.items()])

    return set_times


@pytest.mark.parametrize(("torchs", "kept"), [(0.97, False), (0.93, True), (1.03, False)])
def test_convert_with_example_keeps_only_what_torch_does_clearly_faster(
    torchs: float, kept: bool, measured: Callable[[Times], None]
) -> None:
    measured({"0": (1.0, torchs)})
    model = fastcnn.convert(network(), torch.randn(2, 3, 8, 8))
    assert ("0" in plan(model).kept) is kept


def test_convert_with_example_measures_near_ties_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = {
        "Conv2d": iter([0.9, 1.3, 1.1, 0.8, 1.2]),
        "BatchNormReLU2d": iter([1.3]),
        "BatchNorm2d": iter([1.2, 0.8, 0.9, 1.1, 0.7]),
    }
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))

    def measure(call: object, row: LayerTime, *_: object) -> LayerTime:
        return replace(row, ours_ms=1.0, torch_ms=next(ratios[row.kind]), ours_backward_ms=0.0, torch_backward_ms=0.0)

    monkeypatch.setattr(measure_module, "_measure", measure)
    fastcnn.convert(model, torch.randn(2, 3, 8, 8))
    assert plan(model).kept == {"3": "torch is faster: 0.9 ms against 1 ms"}
    assert [next(rest, None) for rest in ratios.values()] == [None] * 3


def test_convert_with_example_keeps_what_torch_does_faster(
    measured: Callable[[Times], None], capsys: pytest.CaptureFixture[str]
) -> None:
    nan = float("nan")
    measured({"0": (0.52, 0.41), "1": (1.0, 1.5), "3": (0.4, 0.5), "4": (nan, nan)})
    model, x = network(), torch.randn(2, 3, 8, 8)
    strides = model[0].weight.stride()
    original = copy.deepcopy(model)
    fastcnn.convert(model, x)
    assert capsys.readouterr().out == ""
    assert [isinstance(layer, (fastcnn.Conv2d, fastcnn.BatchNorm2d)) for layer in model] == [0, 1, 0, 1, 1]
    for converted in (model, copy.deepcopy(model), fastcnn.convert(model)):  # and it stays so
        assert plan(converted).kept == {"0": "torch is faster: 0.41 ms against 0.52 ms"}
        assert [entry.name for entry in plan(converted).fused] == ["1"]  # timed with its ReLU
        torch.testing.assert_close(converted.eval()(x), original.eval()(x))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)

    measured({"0": (0.3, 0.4), "1": (2.0, 1.5), "3": (0.4, 0.5)})
    fastcnn.convert(model.train(), x)
    assert plan(model).kept == {"1": "torch is faster: 1.5 ms against 2 ms"}
    assert "torch is faster" in plan(model).unfused[0].reason
    fastcnn.revert(model)
    assert [type(layer) for layer in model.modules()] == [type(layer) for layer in original.modules()]
    assert model[0].weight.stride() == strides
    assert plan(model).kept == {}


def test_convert_with_example_keeps_a_layer_whose_results_would_differ(measured: Callable[[Times], None]) -> None:
    measured({"0": (0.1, 9.0, "output differs from torch's by 1"), "3": (0.1, 9.0)})
    model = fastcnn.convert(network(), torch.randn(2, 3, 8, 8))
    assert plan(model).kept == {"0": "its results differ from torch's: output differs from torch's by 1"}


def test_convert_with_a_failing_example_leaves_what_was_measured_before(measured: Callable[[Times], None]) -> None:
    measured({"0": (0.52, 0.41), "3": (0.4, 0.5)})
    model = fastcnn.convert(network(), torch.randn(2, 3, 8, 8))
    before = [type(layer) for layer in model.modules()], plan(model).kept

    measured({"0": ()})  # which raises
    with pytest.raises(TypeError):
        fastcnn.convert(model, torch.randn(2, 3, 8, 8))
    assert ([type(layer) for layer in model.modules()], plan(model).kept) == before
    assert before[1] == {"0": "torch is faster: 0.41 ms against 0.52 ms"}


def test_convert_with_example_measures_what_torch_compile_wraps() -> None:
    model = network().eval()
    wrapped = torch.compile(model, backend="eager")
    assert fastcnn.convert(wrapped, torch.randn(2, 3, 8, 8)) is wrapped
    assert any(isinstance(layer, (fastcnn.Conv2d, fastcnn.BatchNorm2d)) or name in plan(model).kept
               for name, layer in model.named_children())  # fmt: skip
