"""Compiled networks run with tests/support/plan_executor.py: float64, and strict about what memory holds."""

from __future__ import annotations

import pytest
from plan_executor import PlanExecutor

from fastcnn import _library


@pytest.fixture(autouse=True)
def plans_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "plan", PlanExecutor)
