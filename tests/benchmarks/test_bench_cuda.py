"""The GPU benchmark's parts, which run on any device, with a clock of this process."""

from __future__ import annotations

import time
from typing import Any

import bench_cuda
import pytest
import torch
from layers import distinct_layers

FIRST = {op: next(layer for layer in distinct_layers() if layer.op == op) for op in ("conv2d", "avg_pool2d", "concat")}
CASES = [("conv2d", "forward"), ("conv2d", "gradient of weight"), ("avg_pool2d", "backward"), ("concat", "forward")]


def clock(call: bench_cuda.Call, calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - started


def test_bench_cuda_measures_layers_and_limits() -> None:
    limits = bench_cuda.measure_limits("cpu", torch.float32, clock, size=64)
    results = {}
    for op, direction in CASES:
        layer = FIRST[op]
        result = bench_cuda.measure(layer, direction, 2, torch.float32, "cpu", clock, blocks=1)
        assert result.ours > 0
        assert result.ratio == pytest.approx(result.torch / result.ours)
        assert result.flop == layer.flop(2)
        results[layer, direction] = result
    table = bench_cuda.show(results, limits, 2, torch.float32)
    assert len(table.rows) == len(CASES)


def test_bench_cuda_draws_gradients_where_the_tensors_are() -> None:
    layer = FIRST["conv2d"]
    tensors = [t.to("meta") for t in layer.tensors(2)]
    gradients = bench_cuda.both(layer.theirs, layer, "gradient of weight", tensors)()
    assert all(gradient.is_meta for gradient in gradients)


def test_bench_cuda_times_nothing_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = FIRST["concat"]

    def wrong(*tensors: Any) -> torch.Tensor:
        return layer.theirs(*tensors) + 1

    broken = type(layer)(**{**vars(layer), "ours": wrong})
    with pytest.raises(AssertionError, match="nothing was timed"):
        bench_cuda.measure(broken, "forward", 2, torch.float32, "cpu", clock, blocks=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_bench_cuda_says_that_there_is_no_gpu() -> None:
    with pytest.raises(SystemExit, match="No GPU here"):
        bench_cuda.main()
