"""A way to reach the build backend, which is no part of the installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout() -> Path:
    return ROOT


@pytest.fixture
def build_backend(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The backend's folder, importable during the test."""
    monkeypatch.syspath_prepend(str(ROOT / "build_backend"))
    return ROOT / "build_backend"
