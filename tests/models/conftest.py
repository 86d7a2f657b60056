"""The networks that the tests run, small where the definition allows it, and what they have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from fastcnn import models


@dataclass(frozen=True)
class Case:
    """A network with dropout off, the size of its images, and a size that is enough where that one takes long."""

    function: Callable[..., nn.Sequential]
    size: int  # pixels
    small_size: int
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(self, layers: str, dtype: torch.dtype = torch.float32, **kwargs: Any) -> nn.Sequential:
        torch.manual_seed(0)
        network = self.function(layers=layers, **{**self.arguments, **kwargs})
        return models.initialize(network).to(dtype)

    def images(self, batch: int = 2, channels: int = 1, small: bool = False) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        size = self.small_size if small else self.size
        return torch.randn((batch, channels, size, size), generator=generator)


# AlexNet with one of its two hidden layers and VGG with an eighth of its channels: torch's linear layers, with up to
# 120 million parameters, would be most of the suite's time.
CASES = {
    "lenet": Case(models.lenet, 28, 28),
    "lenet_max": Case(models.lenet, 28, 28, {"pool": "max"}),
    "lenet_bn": Case(models.lenet, 28, 28, {"batch_norm": True}),
    "alexnet": Case(models.alexnet, 224, 224, {"hidden_layers": 1, "dropout": 0.0}),
    "vgg11": Case(models.vgg, 224, 224, {"width_divisor": 8, "hidden_units": 512, "dropout": 0.0}),
    "nin": Case(models.nin, 224, 99, {"dropout": 0.0}),
    "googlenet": Case(models.googlenet, 96, 64),
    "resnet18": Case(models.resnet, 96, 64),
    "densenet": Case(models.densenet, 96, 64),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]
