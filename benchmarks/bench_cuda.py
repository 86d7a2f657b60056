"""The networks' layers on a GPU, ours against torch's own: python benchmarks/bench_cuda.py [--dtype float16]

Each layer is checked first, then timed by CUDA events, ours and torch's (cuDNN for convolutions) in turn, both
channels_last. Beside the ratio stand the shares of two limits measured on the same GPU: a copy's bandwidth, and the
FLOP/s of a large matrix product (cuBLAS) in the same dtype. A layer whose tensors fit the second-level cache finds them
there from one call to the next, and may show more than the copy's bandwidth.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from layers import Layer, distinct_layers
from rich.console import Console
from rich.table import Table
from test_layers import LEARNED, _backward_of, _check, backward_cases
from torch import Tensor

import fastcnn

BLOCKS = 15
BLOCK_CALLS = 20  # between two events: the clock of events resolves half a microsecond
COPY_BYTES = 1 << 28
PRODUCT_SIZE = 8192

Call = Callable[[], Any]
Clock = Callable[[Call, int], float]  # seconds of that many calls


@dataclass(frozen=True)
class Limits:
    """What the GPU does at best."""

    bytes_per_second: float
    flop_per_second: float


@dataclass(frozen=True)
class Result:
    """Median seconds of ours and torch's, and what the layer moves and computes at least."""

    ours: float
    torch: float
    ratio: float  # median of the blocks' torch / ours
    bytes: int
    flop: int


def event_clock(call: Call, calls: int) -> float:
    """Time calls on the current stream, without the host's time where the GPU is the slower one."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def allow_tf32(allowed: bool) -> None:
    """Let float32 convolutions and products use TF32, or not."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


@contextmanager
def exact() -> Iterator[None]:
    """Check in float32 what may be timed in TF32, whose error is as large as a wrong kernel's."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    allow_tf32(False)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def in_turn(ours: Call, theirs: Call, clock: Clock, blocks: int = BLOCKS) -> tuple[float, float, float]:
    """Median seconds of one call of each, and the median of the blocks' ratios."""
    for call in (ours, theirs):
        clock(call, 3)  # warm up, choose algorithms
    pairs = [(clock(theirs, BLOCK_CALLS) / BLOCK_CALLS, clock(ours, BLOCK_CALLS) / BLOCK_CALLS) for _ in range(blocks)]
    mine, their = statistics.median(o for _, o in pairs), statistics.median(t for t, _ in pairs)
    return mine, their, statistics.median(t / o for t, o in pairs)


def measure_limits(device: str, dtype: torch.dtype, clock: Clock, size: int = PRODUCT_SIZE) -> Limits:
    """Copy a tensor and multiply two matrices."""
    source = torch.randn(COPY_BYTES // 4 * size // PRODUCT_SIZE, device=device)
    target, matrix = torch.empty_like(source), torch.randn(size, size, device=device, dtype=dtype)
    best = [min(clock(call, 1) for _ in range(5)) for call in (lambda: target.copy_(source), lambda: matrix @ matrix)]
    return Limits(2 * source.numel() * 4 / best[0], 2 * size**3 / best[1])


def measure(
    layer: Layer, direction: str, batch: int, dtype: torch.dtype, device: str, clock: Clock, blocks: int = BLOCKS
) -> Result:
    """Check a pass of a layer against torch's, then time both."""
    tensors = [t.to(device) for t in layer.tensors(batch, dtype)]
    with fastcnn.backends.fallback(False):
        if direction == "forward":
            with torch.inference_mode():
                expected = layer.theirs(*tensors)
                with exact():
                    _check(layer, layer.ours(*tensors), layer.theirs(*tensors))
                times = in_turn(lambda: layer.ours(*tensors), lambda: layer.theirs(*tensors), clock, blocks)
            moved = [*tensors, expected]
        else:
            ours, theirs = (both(op, layer, direction, tensors) for op in (layer.ours, layer.theirs))
            with exact():
                for a, b in zip(ours(), theirs(), strict=True):
                    _check(layer, a, b)
            times = in_turn(ours, theirs, clock, blocks)
            moved = [*tensors, layer.theirs(*tensors), *(() if layer.op == "conv2d" else theirs())]
    size = sum(t.numel() * t.element_size() for t in moved)
    return Result(*times, bytes=size, flop=layer.flop(batch))


def both(op: Callable[..., Tensor], layer: Layer, direction: str, tensors: list[Tensor]) -> Call:
    """The backward of an op whose forward has run."""
    learned = [i for i in LEARNED[direction] if i < len(tensors)]
    return _backward_of(op, tensors, learned, torch.channels_last)


def show(results: dict[tuple[Layer, str], Result], limits: Limits, batch: int, dtype: torch.dtype) -> Table:
    """One row for each pass."""
    title = (
        f"batch {batch}, {dtype}; copy {limits.bytes_per_second / 1e9:.0f} GB/s, "
        f"matrix product {limits.flop_per_second / 1e12:.1f} TFLOP/s"
    )
    table = Table("network", "layer", "input", "pass", title=title)
    for heading in ("ours µs", "torch µs", "torch / ours", "of copy", "of product"):
        table.add_column(heading, justify="right")
    for (layer, direction), r in results.items():
        shares = [r.bytes / r.ours / limits.bytes_per_second, r.flop / r.ours / limits.flop_per_second]
        figures = [f"{1e6 * r.ours:.1f}", f"{1e6 * r.torch:.1f}", f"{r.ratio:.2f}", *(f"{s:.0%}" for s in shares)]
        table.add_row(layer.network, layer.name, layer.fields()["input"], direction, *figures)
    return table


def main(
    batch: Annotated[int, typer.Option(help="images")] = 32,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16")] = "float32",
    kernel: Annotated[str, typer.Option(help="only layers whose op or name contains this")] = "",
    tf32: Annotated[bool, typer.Option(help="let float32 use tensor cores, on both sides")] = False,
) -> None:
    """Compare every layer and pass on the current GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("No GPU here: torch.cuda.is_available() is False. `make cuda-report` needs none.")
    allow_tf32(tf32)
    torch.backends.cudnn.benchmark = True  # cuDNN at its best
    kind = getattr(torch, dtype)
    cases = [(layer, "forward") for layer in distinct_layers()] + backward_cases()
    cases = [case for case in cases if kernel in case[0].op or kernel in case[0].name]
    limits = measure_limits("cuda", kind, event_clock)
    results = {}
    console = Console()
    try:
        for number, (layer, direction) in enumerate(cases, 1):
            console.print(f"{number}/{len(cases)} {layer.name} {direction}", end="\r")
            results[layer, direction] = measure(layer, direction, batch, kind, "cuda", event_clock)
    finally:  # what was measured before a failure is shown
        console.print(torch.cuda.get_device_name(), show(results, limits, batch, kind), sep="\n")


if __name__ == "__main__":
    typer.run(main)
