"""The emulator, whose compiled libraries serve all tests of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from emulation import Emulator


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """The oracle's tensors are small: threads that wait for each other would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("emulation"))
