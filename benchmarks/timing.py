"""Ours and theirs in turn, so that a machine whose speed drifts slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import fastcnn

BLOCK_SECONDS = 0.005  # of the fastest side: far above the clock's resolution
BLOCKS = (5, 40)  # at least and at most


def seconds_of(call: Callable[[], Any]) -> float:
    """Of one call; of the second one where the first may have paid for warming up."""
    for _ in range(2):
        started = time.perf_counter()
        call()
        seconds = time.perf_counter() - started
        if seconds > 20 * BLOCK_SECONDS:
            break
    return seconds


class Interleaved:
    """Times a pytest-benchmark's function and, before each of its blocks, its rivals'."""

    def __init__(
        self,
        ours: Callable[[], Any],
        rivals: dict[str, Callable[[], Any]],
        budget: float,
        by_rule: Callable[[], Any] | None = None,
    ) -> None:
        """All take no arguments and do the same work; the first rival is the one that `ratio` is taken of.

        `by_rule` is ours as the default rule runs it, if that is something else: it runs with the fallback on. `budget`
        is the time of all in seconds, where the least number of blocks takes no longer.
        """
        self.ours, self.rivals, self.by_rule = ours, rivals, by_rule
        each = [seconds_of(call) for call in (ours, *rivals.values(), *([by_rule] if by_rule else []))]
        self.calls = max(1, round(BLOCK_SECONDS / min(each)))
        self.blocks = min(max(int(budget / (self.calls * sum(each))), BLOCKS[0]), BLOCKS[1])
        self.seconds: dict[str, list[float]] = {}

    def run(self, benchmark: Any) -> None:
        """Runs the blocks and notes medians, ratios and their quartiles in the benchmark's extra_info."""
        benchmark.pedantic(self._our_block, setup=self._rivals_block, rounds=self.blocks, iterations=1)
        medians = {name: statistics.median(seconds) for name, seconds in self.seconds.items()}
        best = min(self.rivals, key=medians.__getitem__)
        first = next(iter(self.rivals))
        ratios = self._ratios(first)
        low, _, high = statistics.quantiles(ratios, n=4)
        benchmark.extra_info.update(
            {
                "ms": {name: 1e3 * seconds for name, seconds in medians.items()},
                "ratio": statistics.median(ratios),
                "ratio_quartiles": [low, high],
                "best": best,
                "ratio_best": statistics.median(self._ratios(best)),
                "ratio_rule": statistics.median(self._ratios(first, "by rule" if self.by_rule else "fastcnn")),
                "blocks": self.blocks,
                "calls_per_block": self.calls,
            }
        )

    def _ratios(self, rival: str, ours: str = "fastcnn") -> list[float]:
        return [theirs / mine for theirs, mine in zip(self.seconds[rival], self.seconds[ours], strict=True)]

    def _our_block(self) -> None:
        self._block("fastcnn", self.ours)

    def _rivals_block(self) -> None:
        for name, call in self.rivals.items():
            self._block(name, call)
        if self.by_rule is not None:
            with fastcnn.backends.fallback(True):
                self._block("by rule", self.by_rule)

    def _block(self, name: str, call: Callable[[], Any]) -> None:
        started = time.perf_counter()
        for _ in range(self.calls):
            call()
        self.seconds.setdefault(name, []).append((time.perf_counter() - started) / self.calls)
