"""Ours and theirs in turn, so that a machine whose speed drifts slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

TARGET_SECONDS = 0.005  # of one timed round: far above the clock's resolution
ROUNDS = 7


def calibrate(call: Callable[[], Any]) -> int:
    """How many calls make one round; warms the call up."""
    call()
    started = time.perf_counter()
    call()
    return max(1, round(TARGET_SECONDS / max(time.perf_counter() - started, 1e-9)))


class Interleaved:
    """Times a pytest-benchmark's function and, before each of its rounds, its rivals."""

    def __init__(self, ours: Callable[[], Any], rivals: dict[str, Callable[[], Any]]) -> None:
        """All take no arguments and do the same work; the first rival is the one that the ratio is taken of."""
        self.ours, self.rivals = ours, rivals
        self.calls = max(calibrate(call) for call in (ours, *rivals.values()))
        self.seconds: dict[str, list[float]] = {name: [] for name in ("fastcnn", *rivals)}

    def run(self, benchmark: Any) -> None:
        """Runs the rounds and notes medians, their ratio and its quartiles in the benchmark's extra_info."""
        benchmark.pedantic(self._our_round, setup=self._rivals_round, rounds=ROUNDS, iterations=1)
        ours, first = self.seconds["fastcnn"], self.seconds[next(iter(self.rivals))]
        ratios = [theirs / mine for theirs, mine in zip(first, ours, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        benchmark.extra_info.update(
            {
                "ms": {name: 1e3 * statistics.median(seconds) for name, seconds in self.seconds.items()},
                "ratio": statistics.median(ratios),
                "ratio_quartiles": [low, high],
                "calls_per_round": self.calls,
            }
        )

    def _our_round(self) -> None:
        self._round("fastcnn", self.ours)

    def _rivals_round(self) -> None:
        for name, call in self.rivals.items():
            self._round(name, call)

    def _round(self, name: str, call: Callable[[], Any]) -> None:
        started = time.perf_counter()
        for _ in range(self.calls):
            call()
        self.seconds[name].append((time.perf_counter() - started) / self.calls)
