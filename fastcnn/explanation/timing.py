"""Calls in turn, so that a machine whose speed drifts slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

BLOCK_SECONDS = 0.002  # of the fastest call's block: far above the clock's resolution
ROUNDS = (5, 40)  # at least and at most


def spread(values: Sequence[float]) -> float:
    """The distance of the quartiles over the median: large where something else uses the machine."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / max(middle, 1e-9)


def blocks_ms(calls: Sequence[Callable[[], Any]], seconds: float) -> list[list[float]]:
    """Time `calls` in turn, each round in the other order, and return the ms a call in each block of each one.

    All of it takes about `seconds`, but for calls so long that the least number of rounds takes more.
    """
    each = [_seconds(call, 1) for call in calls]
    repeats = max(1, round(BLOCK_SECONDS / max(min(each), 1e-7)))
    rounds = min(max(int(seconds / max(repeats * sum(each), 1e-7)), ROUNDS[0]), ROUNDS[1])
    taken: list[list[float]] = [[] for _ in calls]
    for i in range(rounds):
        order = range(len(calls)) if i % 2 == 0 else reversed(range(len(calls)))
        for index in order:
            taken[index].append(1e3 * _seconds(calls[index], repeats))
    return taken


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats
