"""Calls in turn, so that a machine whose speed drifts slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

BLOCK_SECONDS = 0.002  # of the fastest call's block: far above the clock's resolution
ROUNDS = (5, 40)  # at least and at most


def interleaved_ms(calls: Sequence[Callable[[], Any]], seconds: float) -> tuple[list[float], float]:
    """Time `calls` in turn, each round in the other order; return each one's median in ms, and the largest spread.

    The spread is the distance of the quartiles over the median: large where something else uses the machine. All of it
    takes about `seconds`, but for calls so long that the least number of rounds takes more.
    """
    each = [_seconds(call, 1) for call in calls]
    repeats = max(1, round(BLOCK_SECONDS / max(min(each), 1e-7)))
    rounds = min(max(int(seconds / max(repeats * sum(each), 1e-7)), ROUNDS[0]), ROUNDS[1])
    taken: list[list[float]] = [[] for _ in calls]
    for i in range(rounds):
        order = range(len(calls)) if i % 2 == 0 else reversed(range(len(calls)))
        for index in order:
            taken[index].append(_seconds(calls[index], repeats))
    medians, spread = [], 0.0
    for values in taken:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        medians.append(1e3 * middle)
        spread = max(spread, (high - low) / max(middle, 1e-9))
    return medians, spread


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats
