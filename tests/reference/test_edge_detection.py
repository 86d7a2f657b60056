"""The example script that learns the edge detector."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "edge_detection.py"


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("edge_detection", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_edge_detection_learns_the_kernel(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main() == 0
    printed = capsys.readouterr().out
    assert "[0.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0]" in printed
    assert "learnt kernel" in printed


def test_edge_detection_says_when_it_did_not_learn(
    example: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "STEPS", 1)
    assert example.main() == 1
    assert "not learnt" in capsys.readouterr().err
