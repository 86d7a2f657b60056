"""Puts back after each test what the process shares: the number of threads, and the switches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastcnn import _library


@pytest.fixture(autouse=True)
def _restore_process_state() -> Iterator[None]:
    library, threads = _library.load(), torch.get_num_threads()
    switches = {name: library.fastcnn_get_switch(name) for name in library.fastcnn_switches().split()}
    yield
    torch.set_num_threads(threads)
    for name, value in switches.items():
        library.fastcnn_set_switch(name, value)
