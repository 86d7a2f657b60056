"""Ours and theirs in turn, so that a machine whose speed drifts slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

TARGET_SECONDS = 0.01  # of one timed round: far above the clock's resolution and a context switch
ROUNDS = 9


def calibrate(call: Callable[[], Any]) -> int:
    """How many calls make one round; warms the call up."""
    call()
    started = time.perf_counter()
    call()
    return max(1, round(TARGET_SECONDS / max(time.perf_counter() - started, 1e-9)))


class Interleaved:
    """Times a pytest-benchmark's function and, before each of its rounds, torch's."""

    def __init__(self, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
        """`ours` and `theirs` take no arguments and do the same work."""
        self.ours, self.theirs = ours, theirs
        self.calls = max(calibrate(ours), calibrate(theirs))
        self.their_seconds: list[float] = []
        self.our_seconds: list[float] = []

    def run(self, benchmark: Any) -> None:
        """Runs the rounds and notes medians and their ratio in the benchmark's extra_info."""
        benchmark.pedantic(self._our_round, setup=self._their_round, rounds=ROUNDS, iterations=1)
        ours, theirs = statistics.median(self.our_seconds), statistics.median(self.their_seconds)
        benchmark.extra_info.update(
            ours_ms=1e3 * ours, torch_ms=1e3 * theirs, ratio=theirs / ours, calls_per_round=self.calls
        )

    def _our_round(self) -> None:
        self.our_seconds.append(self._round(self.ours))

    def _their_round(self) -> None:
        self.their_seconds.append(self._round(self.theirs))

    def _round(self, call: Callable[[], Any]) -> float:
        started = time.perf_counter()
        for _ in range(self.calls):
            call()
        return (time.perf_counter() - started) / self.calls
