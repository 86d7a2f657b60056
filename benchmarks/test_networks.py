"""A training step of each of the seven networks: the loss checked, then timed in turn with the torch.nn twin's, in both
layouts and compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import NETWORKS
from timing import Interleaved
from torch import nn

import fastcnn
from fastcnn import models

ARGUMENTS = {"vgg11": {"width_divisor": 4}}  # the textbook's recipe


def _step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


@pytest.mark.parametrize("network", NETWORKS)
def test_training_step(benchmark: Any, network: str, batch: int, threads: int, compiled: bool) -> None:
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
        Interleaved(steps.pop("fastcnn"), steps).run(benchmark)
    benchmark.extra_info.update(
        {
            "network": network,
            "layer": "whole network",
            "input": f"1x{info.input_size}x{info.input_size}",
            "pass": "training step",
            "batch": batch,
            "threads": threads,
        }
    )
