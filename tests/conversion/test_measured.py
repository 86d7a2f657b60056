"""fastcnn.convert with an example: what the measurement says is done, and remembered."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fastcnn
from fastcnn.conversion.plan import plan


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what layers take, {name: (ours, torch's)} in ms, and what a batch norm with its ReLU takes."""

    def set_times(layers: dict[str, tuple[float, float]], pair: list[float]) -> None:
        def row(name: str, ours: float, theirs: float) -> Any:
            return SimpleNamespace(
                **{"name": name, "ours_total_ms": ours, "torch_total_ms": theirs, "measured": ours == ours, "calls": 1},
                **{"mismatch": "", "shape": (2, 8, 4, 4), "dtype": torch.float32, "layout": "channels_last"},
            )

        def interleaved_ms(calls: list[Callable[[], Any]], seconds: float) -> list[float]:
            for call in calls:
                call()
            return pair

        measure, timing = ModuleType("measure"), ModuleType("timing")
        vars(measure).update(measure_layers=lambda *_: [row(n, *t) for n, t in layers.items()], LayerTime=Any)
        vars(timing).update(interleaved_ms=interleaved_ms)
        monkeypatch.delitem(sys.modules, "fastcnn.conversion.measured", raising=False)
        monkeypatch.setitem(sys.modules, "fastcnn.explanation.measure", measure)
        monkeypatch.setitem(sys.modules, "fastcnn.explanation.timing", timing)
        monkeypatch.setitem(sys.modules, "fastcnn.explanation", ModuleType("fastcnn.explanation"))

    yield set_times  # type: ignore[misc]
    sys.modules.pop("fastcnn.conversion.measured", None)


def test_convert_with_example_keeps_what_torch_does_faster(
    measured: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    nan = float("nan")
    measured({"0": (0.52, 0.41), "1": (2.0, 1.0), "3": (0.4, 0.5), "4": (nan, nan)}, [1.0, 1.5])
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

    measured({"0": (0.3, 0.4), "1": (2.0, 1.0), "3": (0.4, 0.5)}, [2.0, 1.5])
    fastcnn.convert(model.train(), x)
    assert plan(model).kept == {"1": "torch is faster: 1.5 ms against 2 ms"}
    assert "torch is faster" in plan(model).unfused[0].reason
    fastcnn.revert(model)
    assert [type(layer) for layer in model.modules()] == [type(layer) for layer in original.modules()]
    assert model[0].weight.stride() == strides
    assert plan(model).kept == {}
