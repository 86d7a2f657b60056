"""Puts back after each test what the process shares: the number of threads, and the switches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import fastcnn


@pytest.fixture(autouse=True)
def _restore_process_state() -> Iterator[None]:
    threads, fallback = torch.get_num_threads(), fastcnn.backends.fallback_enabled()
    yield
    torch.set_num_threads(threads)
    fastcnn.backends.fallback(fallback)
