"""Compiled networks run with tests/support/program_executor.py: float64, and strict about what memory holds.

That the C++ program takes what is compiled is seen as well.
"""

from __future__ import annotations

import pytest
from program_executor import ProgramExecutor

from fastcnn.compilation import executable
from fastcnn.compilation.spec import Program


@pytest.fixture(autouse=True)
def programs_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = executable.prepare

    def prepare_both(program: Program) -> ProgramExecutor:
        prepare(program)
        return ProgramExecutor(program)

    monkeypatch.setattr(executable, "prepare", prepare_both)
