"""Whole networks, compiled once, against their float64 selves for several batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compiling import compile_and_check
from torch import nn

from fastcnn import models
from fastcnn._torchvision import import_torchvision

torchvision = import_torchvision()

import timm  # noqa: E402 - it imports torchvision

# Name, pixels, arguments; small where the network's definition allows.
OURS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "lenet": ("lenet", 28, {}),
    "lenet_bn": ("lenet_bn", 28, {}),
    "alexnet": ("alexnet", 224, {"hidden_layers": 1}),
    "vgg11": ("vgg11", 224, {"width_divisor": 8, "hidden_units": 64}),
    "nin": ("nin", 67, {}),
    "googlenet": ("googlenet", 64, {}),
    "resnet18": ("resnet18", 32, {}),
    "densenet": ("densenet", 32, {}),
}


@pytest.mark.parametrize(
    ("name", "layers"), [*((name, "fastcnn") for name in OURS), ("lenet_bn", "torch"), ("densenet", "torch")]
)
def test_network_compiled_is_the_network(name: str, layers: str) -> None:
    network, size, arguments = OURS[name]
    torch.manual_seed(0)
    model = models.build(network, layers=layers, **arguments)
    report = compile_and_check(models.initialize(model), 1, size, size, batches=(2,)).report()
    assert report.aten == {}
    assert name == "densenet" or not any("scale_shift" in step for step in report.steps)


# Name, pixels, arguments, and the operators that stay torch's.
TORCHVISION: dict[str, tuple[int, dict[str, Any], set[str]]] = {
    "resnet18": (33, {}, set()),
    "googlenet": (64, {"init_weights": False, "aux_logits": False, "transform_input": True}, {"select", "unsqueeze"}),
    "densenet121": (32, {}, set()),
    "mobilenet_v2": (32, {}, set()),
    "vgg11_bn": (32, {"init_weights": False}, set()),
    "squeezenet1_1": (33, {}, set()),
    "shufflenet_v2_x0_5": (32, {}, {"chunk", "reshape", "transpose"}),
    "mobilenet_v3_small": (32, {}, set()),
    "efficientnet_b0": (32, {}, set()),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_network_compiled_is_the_network(name: str) -> None:
    size, arguments, aten = TORCHVISION[name]
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(**arguments)
    if name == "vgg11_bn":  # a hundred million weights fewer, at the same place
        model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 5))
    report = compile_and_check(model, 3, size, size, batches=(1, 3)).report()
    names = {op.split(".")[1] for op in report.aten}
    assert aten <= names if aten else not names, names


@pytest.mark.parametrize("name", ["regnetx_002", "resnet10t"])
def test_timm_network_compiled_is_the_network(name: str) -> None:
    torch.manual_seed(0)
    compile_and_check(timm.create_model(name), 3, 32, 32, batches=(1, 3))


def test_densenet_concats_are_written_in_place() -> None:
    """torchvision's form, in which each layer concatenates all before it anew."""
    torch.manual_seed(0)
    model = torchvision.models.DenseNet(growth_rate=4, block_config=(3, 3), num_init_features=8, num_classes=5)
    report = compile_and_check(model, 3, 32, 32).report()
    assert not any("copy" in step for step in report.steps)
