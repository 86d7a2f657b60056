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
from fastcnn.models.layers import TorchConcat

NETWORKS = ("lenet", "lenet_bn", "alexnet", "vgg11", "nin", "googlenet", "resnet18", "densenet")
ARGUMENTS = {"vgg11": {"width_divisor": 4}}  # the textbook's recipe, where a whole network is measured

MODULES: dict[str, Callable[..., nn.Module]] = {
    "conv2d": nn.Conv2d,
    "max_pool2d": nn.MaxPool2d,
    "avg_pool2d": nn.AvgPool2d,
    "batch_norm_relu": nn.BatchNorm2d,
}


@dataclass(frozen=True)
class Layer:
    """One op on one input: ours and torch's as functions of its tensors, and what it is of."""

    network: str  # the first that has it
    op: str
    name: str
    channels: int
    height: int
    width: int
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    weight: tuple[int, ...] | None = None  # shape of a convolution's
    parts: tuple[int, ...] = ()  # channels of each tensor of a concat

    def flop(self, batch: int) -> int:
        """Multiplications and additions of a forward pass; 0 for layers without weights."""
        if self.weight is None:
            return 0
        out_channels, in_channels, kernel_h, kernel_w = self.weight
        height, width = ((s + 2 * self.padding - self.kernel) // self.stride + 1 for s in (self.height, self.width))
        return 2 * batch * height * width * out_channels * in_channels * kernel_h * kernel_w

    def fields(self) -> dict[str, Any]:
        """What a benchmark's row says of the layer; benchmarks/targets.py reads it."""
        return {
            "network": self.network,
            "op": self.op,
            "layer": self.name,
            "input": f"{self.channels}x{self.height}x{self.width}",
            "channels": self.channels,
            "out_channels": self.weight[0] if self.weight is not None else self.channels,
            "size": self.height,
            "kernel": self.kernel,
            "stride": self.stride,
        }

    def tensors(self, batch: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
        """The op's tensors, channels_last; those that it learns from come first. Batch norm's own stay float32."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def image(channels: int) -> Tensor:
            # Layers follow a ReLU: half of their input is zero, none of it negative.
            drawn = draw(batch, channels, self.height, self.width).relu_()
            return drawn.to(dtype, memory_format=torch.channels_last)

        if self.parts:
            return [image(channels) for channels in self.parts]
        if self.op == "batch_norm_relu":
            c = self.channels
            return [image(c), 1 + draw(c) / 4, draw(c) / 4, torch.zeros(c), torch.ones(c)]
        if self.weight is not None:
            weight = draw(*self.weight) * (self.weight[1] * self.weight[2] * self.weight[3]) ** -0.5
            bias = draw(self.weight[0]).to(dtype)
            return [image(self.channels), weight.to(dtype, memory_format=torch.channels_last), bias]
        return [image(self.channels)]


def _our_batch_norm_relu(input: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return ops.batch_norm_relu(input, mean, var, weight, bias, training=True)


def _their_batch_norm_relu(input: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.relu(F.batch_norm(input, mean, var, weight, bias, training=True))


def _our_concat(*tensors: Tensor) -> Tensor:
    return ops.concat(tensors, 1)


def _their_concat(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors, 1)


def _describe(module: nn.Module, input: Any) -> dict[str, Any] | None:
    """A module's layer but for network and input size; None for modules that are not measured."""
    if isinstance(module, nn.Conv2d):
        kwargs = dict(stride=module.stride, padding=module.padding, groups=module.groups)
        kernel, stride = module.kernel_size[0], module.stride[0]
        return dict(
            op="conv2d", name=f"conv{kernel}x{kernel}/{stride} -> {module.out_channels}", kernel=kernel, stride=stride,
            padding=module.padding[0], weight=tuple(module.weight.shape), ours=partial(ops.conv2d, **kwargs),
            theirs=partial(F.conv2d, **kwargs),
        )  # fmt: skip
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        kind = "max" if isinstance(module, nn.MaxPool2d) else "avg"
        sizes = dict(kernel_size=module.kernel_size, stride=module.stride, padding=module.padding)
        ours, theirs = (getattr(library, f"{kind}_pool2d") for library in (ops, F))
        return dict(
            op=f"{kind}_pool2d", name=f"{kind}_pool{module.kernel_size}/{module.stride}", kernel=module.kernel_size,
            stride=module.stride, padding=module.padding, ours=partial(ours, **sizes), theirs=partial(theirs, **sizes),
        )  # fmt: skip
    if isinstance(module, nn.AdaptiveAvgPool2d):
        ours, theirs = (partial(library.adaptive_avg_pool2d, output_size=1) for library in (ops, F))
        return dict(op="avg_pool2d", name="global_avg_pool", kernel=input.shape[2], ours=ours, theirs=theirs)
    if isinstance(module, nn.BatchNorm2d):
        return dict(
            op="batch_norm_relu", name="batch_norm + relu", ours=_our_batch_norm_relu, theirs=_their_batch_norm_relu
        )
    if isinstance(module, TorchConcat):
        parts = tuple(t.shape[1] for t in input)
        name = "concat " + "+".join(map(str, parts))
        return dict(op="concat", name=name, parts=parts, ours=_our_concat, theirs=_their_concat)
    return None


@cache
def distinct_layers() -> list[Layer]:
    """Every convolution, pooling, BatchNorm+ReLU and concat of the networks, each shape once."""
    found: dict[tuple[Any, ...], Layer] = {}

    def add(network: str, module: nn.Module, input: Any) -> None:
        described = _describe(module, input)
        if described is None:
            return
        images = [input] if isinstance(input, Tensor) else list(input)
        c, (h, w) = sum(t.shape[1] for t in images), images[0].shape[2:]
        key = (described["name"], described.get("weight"), c, h, w)
        found.setdefault(key, Layer(network=network, channels=c, height=h, width=w, **described))

    for network in NETWORKS:
        info = models.REGISTRY[network]
        with torch.device("meta"):
            model = info.build(layers="torch").eval()
            image = torch.empty(1, 1, info.input_size, info.input_size)
        for module in model.modules():
            module.register_forward_pre_hook(lambda m, args, network=network: add(network, m, args[0]))
        model(image)
    for network, op, c, h, w, *sizes in json.loads(Path(__file__).with_name("large_networks.json").read_text()):
        with torch.device("meta"):
            module = MODULES[op](*((c, *sizes) if op == "conv2d" else sizes or (c,)))
            add(network, module, torch.empty(1, c, h, w))
    return list(found.values())
