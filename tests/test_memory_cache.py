"""Memory that is kept when it is freed: reused, bounded by the peak, given back, and never shared by two tensors."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastcnn import backends, ops

MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    backends.empty_cache()
    yield
    backends.empty_cache()


def make(megabytes: float, value: float = 1.0) -> Tensor:
    """An op's result of that size, in float32, full of one value."""
    return ops.concat([torch.full([int(megabytes * MEGABYTE / 8)], value)] * 2)


def test_memory_cache_freed_block_serves_the_next_of_its_size() -> None:
    first = make(3)
    address = first.data_ptr()
    del first
    assert make(3).data_ptr() == address


def test_memory_cache_keeps_what_is_freed_and_empty_cache_gives_it_back() -> None:
    result = make(3)
    assert backends.cached_memory() == 0
    del result
    assert backends.cached_memory() == 3 * MEGABYTE
    backends.empty_cache()
    assert backends.cached_memory() == 0


def test_memory_cache_off_keeps_nothing() -> None:
    with backends.memory_cache(False):
        make(3)
    assert backends.cached_memory() == 0


def test_memory_cache_small_results_are_not_kept() -> None:
    make(0.5)
    assert backends.cached_memory() == 0


def test_memory_cache_empty_cache_leaves_blocks_in_use() -> None:
    kept, freed = make(2, 5.0), make(4)
    del freed
    backends.empty_cache()
    assert (kept == 5.0).all()


def test_memory_cache_large_block_serves_several_small_ones_and_becomes_one_again() -> None:
    large = make(8)
    begin = large.data_ptr()
    del large
    parts = [make(2, float(index)) for index in range(4)]
    assert sorted(part.data_ptr() - begin for part in parts) == [0, 2 * MEGABYTE, 4 * MEGABYTE, 6 * MEGABYTE]
    assert all((part == index).all() for index, part in enumerate(parts))
    del parts
    assert backends.cached_memory() == 8 * MEGABYTE
    assert make(8).data_ptr() == begin


def test_memory_cache_many_sizes_stay_within_the_peak() -> None:
    for size in range(2, 34):  # one at a time: 33 MB at most are in use
        make(size)
        assert backends.cached_memory() <= size * MEGABYTE


def test_memory_cache_blocks_of_many_threads_never_overlap() -> None:
    def work(seed: int) -> bool:
        generator = torch.Generator().manual_seed(seed)
        held: list[tuple[Tensor, float]] = []
        for step in range(60):
            size = 1 + 3 * float(torch.rand([], generator=generator))
            value = float(seed * 1000 + step)
            held.append((make(size, value), value))
            if len(held) > 4:
                tensor, expected = held.pop(int(torch.randint(5, [], generator=generator)))
                if not bool((tensor == expected).all()):
                    return False
        return all(bool((tensor == expected).all()) for tensor, expected in held)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_memory_cache_results_are_ordinary_tensors() -> None:
    result = make(2, 3.0)
    assert result.untyped_storage().nbytes() == 2 * MEGABYTE
    assert (make(2, 3.0).resize_(MEGABYTE)[: MEGABYTE // 2] == 3.0).all()
    assert (pickle.loads(pickle.dumps(result)) == 3.0).all()
    buffer = io.BytesIO()
    torch.save(result, buffer)
    buffer.seek(0)
    assert (torch.load(buffer) == 3.0).all()
    assert (torch.from_numpy(result.numpy()) == 3.0).all()
    with torch.inference_mode():
        assert make(2).is_inference()


def test_memory_cache_profiler_counts_the_blocks() -> None:
    make(2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = make(2)
    allocated = sum(event.cpu_memory_usage for event in profiled.events() if event.name.startswith("fastcnn"))
    assert allocated >= result.numel() * result.element_size()
