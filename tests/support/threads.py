"""Work in several threads at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier


def run_in_threads(work: Callable[[int], None], count: int) -> None:
    """Calls work(0), ..., work(count - 1), each in a thread of its own, and raises what one of them raises."""
    start = Barrier(count)  # also keeps the pool from giving two calls to one thread

    def started(place: int) -> None:
        start.wait()
        work(place)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(started, range(count)))
