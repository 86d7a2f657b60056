"""The emulator, whose compiled libraries serve all tests of a session."""

from __future__ import annotations

import pytest
from emulation import Emulator


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("emulation"))
