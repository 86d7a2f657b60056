"""Training in several processes, as torchrun starts them; with one process everything here does nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def is_distributed() -> bool:
    """Whether this process has joined a group, of one process or more."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number; 0 writes and prints."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def started_by_torchrun() -> bool:
    """Whether the environment tells this process which group to join."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join torchrun's processes (gloo on CPUs, nccl on GPUs) and yield this process's device."""
    if not started_by_torchrun() or is_distributed():
        yield device
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model to train: in DistributedDataParallel where there are several processes."""
    if not is_distributed():
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def sum_over_processes(values: Tensor) -> Tensor:
    """Add up `values` of all processes, in place."""
    if is_distributed():
        dist.all_reduce(values)
    return values


def share_buffers(model: nn.Module) -> None:
    """Give all processes rank 0's buffers (BatchNorm's running statistics): each one has seen other images."""
    if is_distributed():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def gather(state: Tensor, device: torch.device) -> list[Tensor]:
    """Collect a tensor of the same shape from every process, in the order of ranks."""
    if not is_distributed():
        return [state]
    place = device if device.type == "cuda" else torch.device("cpu")  # nccl sends from GPUs only
    states = [torch.empty_like(state, device=place) for _ in range(world_size())]
    dist.all_gather(states, state.to(place))
    return [part.cpu() for part in states]
