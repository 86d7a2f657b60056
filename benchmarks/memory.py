"""Peak memory of a training step of each network, against the torch.nn twin's in channels_last.

    python benchmarks/memory.py                       # all networks
    python benchmarks/memory.py densenet --batch 128

Each network runs in a process of its own. Its peak is what the parameters, the buffers and the images take, and the
largest running sum of torch's allocations and releases on top of them during the second step, gradients among them,
from the profiler's memory events; ours allocate their scratch in the same place, oneDNN's own are not among them.
Beside it stands what the process's resident memory grew by from before the first step to its largest, which holds
everything.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from apart import resident_bytes, run_apart
from layers import ARGUMENTS, NETWORKS
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fastcnn import models
from fastcnn._machine import cpu_name

MEGABYTE = 1e6


def held_bytes(network: nn.Module, *tensors: torch.Tensor) -> int:
    """Bytes of the parameters, the buffers and the tensors."""
    return sum(t.untyped_storage().nbytes() for t in (*network.parameters(), *network.buffers(), *tensors))


def measure(name: str, layers: str, batch: int, threads: int) -> dict[str, float]:
    """Peak bytes of the second training step, and the growth of the resident memory; both in MB."""
    torch.set_num_threads(threads)
    info = models.REGISTRY[name]
    torch.manual_seed(0)
    network = info.build(layers=layers, **ARGUMENTS.get(name, {})).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 1, info.input_size, info.input_size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)

    def step() -> None:
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()  # here, so that no gradient is older than the profile

    resident = resident_bytes()
    step()
    resident = resident_bytes() - resident
    held = held_bytes(network, images, labels)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = total = held
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return {"peak": peak / MEGABYTE, "resident": (held + resident) / MEGABYTE}


def measure_apart(name: str, layers: str, batch: int, threads: int) -> dict[str, float]:
    """`measure` in a process of its own, whose resident memory nobody has raised before."""
    done = run_apart(__file__, name, "--layers", layers, "--batch", str(batch), "--threads", str(threads))
    done.check_returncode()
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main(
    networks: Annotated[list[str] | None, typer.Argument(help="networks; all by default")] = None,
    batch: Annotated[int, typer.Option(help="images")] = 32,
    threads: Annotated[int, typer.Option(help="threads")] = 2,
    layers: Annotated[str | None, typer.Option(help="measure these layers only, and print JSON")] = None,
) -> None:
    """Prints a table of peak memory in MB, and ours over torch's."""
    if layers is not None:
        for name in networks or NETWORKS:
            print(json.dumps(measure(name, layers, batch, threads)))
        return
    print(f"{cpu_name()}, torch {torch.__version__}, {threads} threads, batch {batch}, float32, channels_last; MB\n")
    print(f"{'network':<10} {'fastcnn':>9} {'torch':>9} {'ratio':>6}   {'resident':>9} {'torch':>9} {'ratio':>6}")
    for name in networks or NETWORKS:
        ours, theirs = (measure_apart(name, which, batch, threads) for which in ("fastcnn", "torch"))
        columns = [f"{ours[k]:9.1f} {theirs[k]:9.1f} {ours[k] / theirs[k]:6.2f}" for k in ("peak", "resident")]
        print(f"{name:<10} {'   '.join(columns)}", flush=True)


if __name__ == "__main__":
    typer.run(main)
