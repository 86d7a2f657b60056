"""Compiled networks run with tests/support/program_executor.py: float64, and strict about what memory holds."""

from __future__ import annotations

import pytest
from program_executor import ProgramExecutor

from fastcnn.compilation import executable


@pytest.fixture(autouse=True)
def programs_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executable, "prepare", ProgramExecutor)
