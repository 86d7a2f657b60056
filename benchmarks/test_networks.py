"""A training step of each of the seven networks: the loss checked, then timed in turn with the torch.nn twin's, in both
layouts and compiled; and its peak memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import memory
import pytest
import torch
import torch.nn.functional as F
from layers import ARGUMENTS, NETWORKS
from timing import Interleaved
from torch import nn

import fastcnn
from fastcnn import models


def _step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _skip_single_vectors(network: str, batch: int) -> None:
    if batch == 1 and network == "lenet_bn":
        pytest.skip("batch norm of vectors has no statistics of one image")


def _fields(network: str, direction: str, batch: int, threads: int) -> dict[str, Any]:
    size = models.REGISTRY[network].input_size
    return {
        "network": network,
        "layer": "whole network",
        "input": f"1x{size}x{size}",
        "pass": direction,
        "batch": batch,
        "threads": threads,
    }


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("direction", ["training step"], ids=["training_step"])
def test_training_step(
    benchmark: Any, network: str, direction: str, batch: int, threads: int, compiled: bool, budget: float
) -> None:
    _skip_single_vectors(network, batch)
    info = models.REGISTRY[network]
    torch.manual_seed(0)
    twins = {name: info.build(layers=name, **ARGUMENTS.get(network, {})) for name in ("fastcnn", "torch")}
    twins["torch"].load_state_dict(twins["fastcnn"].state_dict())
    nhwc = torch.channels_last
    models_of = {
        "fastcnn": twins["fastcnn"],
        "torch channels_last": copy.deepcopy(twins["torch"]).to(memory_format=nhwc),
        "torch NCHW": copy.deepcopy(twins["torch"]),
    }
    if compiled:
        torch._dynamo.reset()  # what was compiled for another number of threads
        models_of["torch.compile"] = torch.compile(copy.deepcopy(twins["torch"]).to(memory_format=nhwc))
    images = torch.randn(batch, 1, info.input_size, info.input_size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))
    steps = {name: _step(model, images, labels) for name, model in models_of.items()}
    with fastcnn.backends.fallback(False):
        losses = {}
        for name, step in steps.items():
            torch.manual_seed(1)  # the same dropout
            losses[name] = step()
            # torch.compile's dropout draws other numbers.
            if name != "torch.compile":
                assert losses["fastcnn"] == pytest.approx(losses[name], rel=1e-3), "nothing was timed"
        Interleaved(steps.pop("fastcnn"), steps, budget).run(benchmark)
    benchmark.extra_info.update(_fields(network, direction, batch, threads))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("direction", ["peak memory"], ids=["peak_memory"])
def test_peak_memory(benchmark: Any, network: str, direction: str, batch: int, threads: int) -> None:
    _skip_single_vectors(network, batch)
    theirs = memory.measure_apart(network, "torch", batch, threads)
    ours = benchmark.pedantic(memory.measure_apart, args=(network, "fastcnn", batch, threads), rounds=1)
    megabytes = {"fastcnn": ours["peak"], "torch channels_last": theirs["peak"]}
    benchmark.extra_info.update(
        {**_fields(network, direction, batch, threads), "MB": megabytes, "of_memory": ours["peak"] / theirs["peak"]}
    )
