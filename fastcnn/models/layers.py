"""What the networks are built from: one LayerSet of torch.nn layers, one of fastcnn layers.

A network asks its layer set for layers and never looks at which one it got. Where the set fuses an activation into
the layer before it, the activation's own place is kept by nn.Identity, so both sets give the same state_dict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Factory = Callable[..., nn.Module]


@dataclass(frozen=True)
class LayerSet:
    """Constructors with the arguments of torch.nn's layers, and the choice whether ReLU is fused."""

    conv2d: Factory
    max_pool2d: Factory
    avg_pool2d: Factory
    global_avg_pool2d: Factory
    batch_norm1d: Factory
    batch_norm2d: Factory
    concat: Factory
    dense_block: Factory  # of (num_convs, in_channels, growth_rate)
    flatten: Factory
    conv2d_relu: Factory  # the ReLU that follows is fused if the set can
    batch_norm_relu2d: Factory  # likewise; where `fused`, forward takes the residual to add before the ReLU
    relu: Factory  # stands after each of the two above: nn.Identity where they have done it
    fused: bool


def layer_set(layers: str) -> LayerSet:
    """Returns the layer set called "fastcnn" or "torch"; ValueError for any other name."""
    if layers == "torch":
        return LayerSet(
            conv2d=nn.Conv2d,
            max_pool2d=nn.MaxPool2d,
            avg_pool2d=nn.AvgPool2d,
            global_avg_pool2d=_torch_global_avg_pool2d,
            batch_norm1d=nn.BatchNorm1d,
            batch_norm2d=nn.BatchNorm2d,
            concat=TorchConcat,
            dense_block=TorchDenseBlock,
            flatten=nn.Flatten,
            conv2d_relu=nn.Conv2d,
            batch_norm_relu2d=nn.BatchNorm2d,
            relu=nn.ReLU,
            fused=False,
        )
    if layers == "fastcnn":
        # Imported here so that the torch networks need no compiled library.
        import fastcnn.nn as fast

        def conv2d_relu(*args: Any, **kwargs: Any) -> nn.Module:
            conv: nn.Module = fast.Conv2d(*args, **kwargs, activation="relu")
            return conv

        return LayerSet(
            conv2d=fast.Conv2d,
            max_pool2d=fast.MaxPool2d,
            avg_pool2d=fast.AvgPool2d,
            global_avg_pool2d=fast.GlobalAvgPool2d,
            batch_norm1d=fast.BatchNorm1d,
            batch_norm2d=fast.BatchNorm2d,
            concat=fast.Concat,
            dense_block=fast.DenseBlock,
            flatten=ChannelsLastFlatten,
            conv2d_relu=conv2d_relu,
            batch_norm_relu2d=fast.BatchNormReLU2d,
            relu=nn.Identity,
            fused=True,
        )
    raise ValueError(f"layers: expected 'fastcnn' or 'torch', but got {layers!r}")


def check_positive(network: str, **sizes: int) -> None:
    """Raises ValueError where one of the named sizes is not an integer of 1 or more."""
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{network}: expected {name} to be a positive integer, but got {value!r}")


def _torch_global_avg_pool2d() -> nn.Module:
    return nn.AdaptiveAvgPool2d((1, 1))


class TorchConcat(nn.Module):
    """torch.cat as a module, so that hooks and layer_shapes see it."""

    def __init__(self, dim: int = 1) -> None:
        """Concatenates along `dim`."""
        super().__init__()
        self.dim = dim

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """torch.cat(tensors, dim)."""
        return torch.cat(tuple(tensors), self.dim)

    def extra_repr(self) -> str:
        """What repr() shows between the brackets."""
        return f"dim={self.dim}"


class TorchDenseBlock(nn.Module):
    """fastcnn.nn.DenseBlock from torch.nn's layers, one by one."""

    def __init__(self, num_convs: int, in_channels: int, growth_rate: int) -> None:
        """Builds num_convs times batch norm, ReLU and a 3x3 convolution of growth_rate channels."""
        super().__init__()
        self.net = nn.Sequential()
        for channels in range(in_channels, in_channels + num_convs * growth_rate, growth_rate):
            conv = nn.Conv2d(channels, growth_rate, kernel_size=3, padding=1)
            self.net.append(nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), conv))
        self.concat = TorchConcat(dim=1)

    def forward(self, input: Tensor) -> Tensor:
        """Tensor[N, C, H, W] to Tensor[N, C + num_convs * growth_rate, H, W]."""
        features = input
        for block in self.net:
            features = self.concat([features, block(features)])
        return features


class _FlattenChannelsLast(torch.autograd.Function):
    """flatten(1), whose gradient comes back in channels_last."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return input.flatten(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.image_shape = inputs[0].shape[1:]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        channels, height, width = ctx.image_shape
        # Not contiguous(memory_format=...), which vmap does not know.
        pixels = grad_outputs[0].reshape(-1, channels, height * width).transpose(1, 2).contiguous()
        return pixels.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


class _FlattenChannelsLastForwardMode(_FlattenChannelsLast):
    """With forward-mode differentiation; a class of its own because torch.compile refuses functions that have it."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0].flatten(1)


class ChannelsLastFlatten(nn.Flatten):
    """nn.Flatten() for a channels_last network: same values, and the gradient it hands back is channels_last.

    nn.Flatten's gradient is NCHW, whatever the input was, and every layer before it would have to deal with that.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Tensor[N, C, H, W] to Tensor[N, C * H * W], in the order c, h, w."""
        # Only where the order changes: with one channel or one pixel both are the same.
        reorders = input.dim() == 4 and input.stride(1) == 1 and input.shape[1] > 1 and input.shape[2:].numel() > 1
        if not (reorders and input.requires_grad and torch.is_grad_enabled()):
            return input.flatten(1)
        function = _FlattenChannelsLast if torch.compiler.is_compiling() else _FlattenChannelsLastForwardMode
        output: Tensor = function.apply(input)  # type: ignore[no-untyped-call, unused-ignore]  # typed from torch 2.14 on
        return output
