"""Measures networks against the other ways to run them, and writes docs/benchmarks/<cpu>-peers/: make bench-peers

    python benchmarks/bench_peers.py --networks lenet,resnet18 --batches 1,32 --threads 1

Batch 1, 8 and 32, one and two threads, float32, inference. Results are checked against float64 first. Then all peers
of a case run in one process, a block of calls each in turn, with a pause before each block in which the pools of
threads of the others come to rest; and each once more in a process of its own (the median over three where the first
is off), which says whether company slowed it, and how much its resident memory grew. The C library keeps what is freed
in all of them: otherwise torch spends up to a third of its time on new pages. The report keeps what it holds of other
networks, batches and numbers of threads, if the same versions were measured on the same machine: hours can be taken in
parts, and with --off those cases again where a peer is off, as something else may have used the machine.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import peers
import peers_report
import torch
import typer
from apart import keep_freed_memory, own_compiler_cache, resident_bytes, run_apart
from torch import Tensor

PAUSE_SECONDS = 0.05  # pools that spin for work give up within a few milliseconds
BLOCK_SECONDS = 0.03  # a block of calls takes at least this long
BLOCKS = (3, 15)  # at least and at most
PEER_SECONDS = 10  # of each peer in a case, where the least number of blocks takes no longer
WARM_SECONDS = 0.5  # a call that takes longer does not show whether the caches were warm
PROCESSES = 3  # of its own that a peer runs in, where the first one's median is another
TOLERANCE = 1e-3  # of the output's norm: float32 in any order of additions, and Winograd's algorithm, stay far below


def block_ms(peer: peers.Peer, batch: Tensor, seconds: float) -> float:
    """The mean time of a call in a block, after one that warms the caches up; `seconds` is what a call takes."""
    time.sleep(PAUSE_SECONDS)
    if seconds < WARM_SECONDS:
        peer.run(batch)
    calls = max(1, round(BLOCK_SECONDS / seconds))
    started = time.perf_counter()
    for _ in range(calls):
        peer.run(batch)
    return 1e3 * (time.perf_counter() - started) / calls


def seconds_of(peer: peers.Peer, batch: Tensor) -> float:
    """What a call takes in a block of calls, of a peer that has run before."""
    calls, started, elapsed = 0, time.perf_counter(), 0.0
    while elapsed < BLOCK_SECONDS:
        peer.run(batch)
        calls, elapsed = calls + 1, time.perf_counter() - started
    return elapsed / calls


def blocks_of(seconds: float) -> int:
    """How many blocks to take of a peer whose call takes so long."""
    least, most = BLOCKS
    return min(max(round(PEER_SECONDS / max(seconds, BLOCK_SECONDS)), least), most)


def check(name: str, output: Tensor, expected: Tensor) -> float:
    """The error of an output, of the norm; raises where it is too large to be rounding."""
    error = float((output.double() - expected.double()).norm() / expected.double().norm())
    if not error < TOLERANCE:
        raise RuntimeError(f"{name}: its output is off by {error:.1e} of the norm; nothing was timed")
    return error


def measure(network: str, batch: int, threads: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each peer."""
    onnx = folder / f"{network.replace(':', '-')}-{batch}.onnx"
    if not onnx.exists():
        peers.export_onnx(network, batch, onnx)
    images, expected = peers.images(network, batch), peers.truth(network, batch)
    rows: list[dict[str, Any]] = []
    date = time.strftime("%Y-%m-%d", time.gmtime())
    with peers.threads_of_torch(threads):
        made: dict[str, tuple[peers.Peer, float]] = {}
        for name in peers.PEERS:
            row = {"network": network, "batch": batch, "threads": threads, "peer": name, "date": date}
            try:
                peer = peers.build(name, network, batch, threads, onnx)
                read = {"facts": peer.facts(), "error": check(name, peer.run(images), expected)}
            except Exception as failure:  # a peer that cannot run a network is a result too
                rows.append({**row, "failed": (str(failure).strip().splitlines() or [type(failure).__name__])[0]})
                continue
            made[name] = peer, seconds_of(peer, images)
            rows.append({**row, **read, "blocks": []})
        for turn in range(blocks_of(max((seconds for _, seconds in made.values()), default=0.0))):
            order = rows if turn % 2 == 0 else rows[::-1]
            for row in (r for r in order if "blocks" in r):
                peer, seconds = made[row["peer"]]
                row["blocks"].append(block_ms(peer, images, seconds))
    for row in (r for r in rows if "blocks" in r):
        low, row["ms"], high = statistics.quantiles(row.pop("blocks"), n=4)
        row["quartiles"] = [low, high]
        row.update(_apart_several(row, onnx))
    return rows


def _apart_several(row: dict[str, Any], onnx: Path) -> dict[str, Any]:
    """As _apart, or the median over processes where the first one is off: memory lies as it happens to in each."""
    found = [_apart(row, onnx)]
    while "alone_ms" in found[0] and peers_report.is_off(row["ms"], found[0]["alone_ms"]) and len(found) < PROCESSES:
        found.append(_apart(row, onnx))
    times = [one["alone_ms"] for one in found if "alone_ms" in one]
    return {**found[0], "alone_ms": statistics.median(times)} if times else {}


def _apart(row: dict[str, Any], onnx: Path) -> dict[str, Any]:
    """A peer in a process of its own: the median, and the growth of its resident memory in MB."""
    case = json.dumps([row["peer"], row["network"], row["batch"], row["threads"], str(onnx)])
    done = run_apart(__file__, "--alone", case)
    if done.returncode != 0:
        return {}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _alone(case: str) -> None:
    name, network, batch, threads, onnx = json.loads(case)
    images = peers.images(network, batch)
    with peers.threads_of_torch(threads):
        before = resident_bytes()
        peer = peers.build(name, network, batch, threads, Path(onnx))
        peer.run(images)
        seconds = seconds_of(peer, images)
        blocks = [block_ms(peer, images, seconds) for _ in range(blocks_of(seconds))]
    print(json.dumps({"alone_ms": statistics.median(blocks), "MB": (resident_bytes() - before) / 1e6}))


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def main(
    networks: Annotated[str, typer.Option(help="by commas")] = ",".join(peers.NETWORKS),
    batches: Annotated[str, typer.Option(help="by commas")] = ",".join(map(str, peers.BATCHES)),
    threads: Annotated[str, typer.Option(help="by commas")] = ",".join(map(str, peers.THREADS)),
    out: Annotated[Path, typer.Option(help="where the report's folder goes")] = peers_report.DOCS,
    off: Annotated[
        bool, typer.Option("--off", help="only what the report holds with a peer that is off, again")
    ] = False,
    alone: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measures, prints a line for each case, and writes them into the report."""
    keep_freed_memory()
    if alone is not None:
        return _alone(alone)
    unknown = [name for name in _list(networks) if name not in peers.NETWORKS]
    if unknown:
        raise typer.BadParameter(f"there is no network {unknown[0]!r}: expected {', '.join(peers.NETWORKS)}")
    cases = [(name, int(b), int(t)) for name in _list(networks) for b in _list(batches) for t in _list(threads)]
    if off:
        known = peers_report.off_cases(peers_report.held(out))
        cases = [case for case in cases if case in known]
    rows: list[dict[str, Any]] = []
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            with own_compiler_cache():  # which serves the case's processes as well
                rows += measure(*case, Path(folder))
            print(peers_report.line(rows, *case), flush=True)
            written = peers_report.write(rows, out)  # hours are not lost with what comes after
    print(f"wrote {written}" if rows else "nothing to measure")


if __name__ == "__main__":
    typer.run(main)
