"""The layers that every benchmark runs: the seven networks', read off the networks, and larger networks'.

large_networks.json lists the distinct layers of torchvision's ResNet-50, VGG-16 and DenseNet-121 at 224 pixels:
network, op, channels, height, width, and for a convolution output channels, kernel, stride, padding, for a pooling the
last three.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn import models, ops

NETWORKS = ("lenet", "lenet_bn", "alexnet", "vgg11", "nin", "googlenet", "resnet18", "densenet")

MODULES: dict[str, Callable[..., nn.Module]] = {
    "conv2d": nn.Conv2d,
    "max_pool2d": nn.MaxPool2d,
    "avg_pool2d": nn.AvgPool2d,
    "batch_norm_relu": nn.BatchNorm2d,
}


@dataclass(frozen=True)
class Layer:
    """One op on one input: ours and torch's as functions of (input, weight, bias), and the shape of its weight."""

    network: str  # the first that has it
    name: str
    channels: int
    height: int
    width: int
    weight: tuple[int, ...] | None
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]

    def flop(self, output: Tensor) -> int:
        """Multiplications and additions of the forward pass; 0 for layers without weights."""
        if self.weight is None:
            return 0
        return 2 * output.numel() * self.weight[1] * self.weight[2] * self.weight[3]


def _describe(
    module: nn.Module,
) -> tuple[str, tuple[int, ...] | None, Callable[..., Tensor], Callable[..., Tensor]] | None:
    kwargs: dict[str, Any]
    if isinstance(module, nn.Conv2d):
        kwargs = dict(stride=module.stride, padding=module.padding, groups=module.groups)
        kernel, stride = module.kernel_size[0], module.stride[0]
        name = f"conv{kernel}x{kernel}/{stride} -> {module.out_channels}"
        return name, tuple(module.weight.shape), partial(ops.conv2d, **kwargs), partial(F.conv2d, **kwargs)
    if isinstance(module, nn.MaxPool2d):
        kwargs = dict(kernel_size=module.kernel_size, stride=module.stride, padding=module.padding)
        name = f"max_pool{module.kernel_size}/{module.stride}"
        return (
            name,
            None,
            partial(_without_weight, ops.max_pool2d, kwargs),
            partial(_without_weight, F.max_pool2d, kwargs),
        )
    if isinstance(module, nn.AvgPool2d):
        kwargs = dict(kernel_size=module.kernel_size, stride=module.stride, padding=module.padding)
        name = f"avg_pool{module.kernel_size}/{module.stride}"
        return (
            name,
            None,
            partial(_without_weight, ops.avg_pool2d, kwargs),
            partial(_without_weight, F.avg_pool2d, kwargs),
        )
    if isinstance(module, nn.AdaptiveAvgPool2d):
        kwargs = dict(output_size=1)
        ours = partial(_without_weight, ops.adaptive_avg_pool2d, kwargs)
        return "global_avg_pool", None, ours, partial(_without_weight, F.adaptive_avg_pool2d, kwargs)
    if isinstance(module, nn.BatchNorm2d):
        return "batch_norm + relu", None, _our_batch_norm_relu, _their_batch_norm_relu
    return None


def _without_weight(op: Callable[..., Tensor], kwargs: dict[str, Any], input: Tensor, *unused: Any) -> Tensor:
    return op(input, **kwargs)


def _our_batch_norm_relu(input: Tensor, *unused: Any) -> Tensor:
    return ops.batch_norm_relu(input, None, None, training=True)


def _their_batch_norm_relu(input: Tensor, *unused: Any) -> Tensor:
    return F.relu(F.batch_norm(input, None, None, training=True))


@cache
def distinct_layers() -> list[Layer]:
    """Every convolution, pooling and BatchNorm+ReLU of the networks, each shape once."""
    found: dict[tuple[Any, ...], Layer] = {}
    for network in NETWORKS:
        info = models.REGISTRY[network]
        with torch.device("meta"):
            model = info.build(layers="torch").eval()
            image = torch.empty(1, 1, info.input_size, info.input_size)

        def visit(module: nn.Module, args: tuple[Tensor, ...], network: str = network) -> None:
            described = _describe(module)
            if described is not None:
                name, weight, ours, theirs = described
                _, c, h, w = args[0].shape
                found.setdefault((name, weight, c, h, w), Layer(network, name, c, h, w, weight, ours, theirs))

        for module in model.modules():
            module.register_forward_pre_hook(visit)
        model(image)
    for network, op, c, h, w, *sizes in json.loads(Path(__file__).with_name("large_networks.json").read_text()):
        with torch.device("meta"):
            module = MODULES[op](*((c, *sizes) if op == "conv2d" else sizes or (c,)))
        described = _describe(module)
        assert described is not None
        name, weight, ours, theirs = described
        found.setdefault((name, weight, c, h, w), Layer(network, name, c, h, w, weight, ours, theirs))
    return list(found.values())
