"""DenseBlock."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastcnn import ops
from fastcnn.nn._plain import is_plain
from fastcnn.nn.batch_norm import BatchNormReLU2d, arguments
from fastcnn.nn.concat import Concat
from fastcnn.nn.conv2d import Conv2d
from fastcnn.ops import _torch


class DenseBlock(nn.Module):
    """Layers of batch norm, ReLU and a 3x3 convolution, each one's channels appended to its input; see ops.dense_block.

    The state_dict is that of the same layers in torch.nn: `net.<i>.0` is a batch norm, `net.<i>.2` a convolution.

    All layers run as one op, for which nobody has to keep what lies between them. They run one by one, with the same
    results and more memory, where that op cannot stand for them: an inner module has hooks or was exchanged for another
    kind, some but not all of the batch norms are in training, the input is not on the CPU.

    Args:
        num_convs: layers.
        in_channels: channels of the input.
        growth_rate: channels that each layer appends.

    Attributes:
        fused: whether the layers may run as one op; set it to False to differentiate gradients. Default: True.
    """

    def __init__(self, num_convs: int, in_channels: int, growth_rate: int) -> None:
        """Makes the layers; see the class."""
        super().__init__()
        self.net = nn.Sequential()
        for channels in range(in_channels, in_channels + num_convs * growth_rate, growth_rate):
            conv = Conv2d(channels, growth_rate, kernel_size=3, padding=1)
            self.net.append(nn.Sequential(BatchNormReLU2d(channels), nn.Identity(), conv))
        self.concat = Concat(dim=1)
        self.fused = True

    def forward(self, input: Tensor) -> Tensor:
        """Tensor[N, C, H, W] to Tensor[N, C + num_convs * growth_rate, H, W]."""
        if self._fuses(input):
            return self._as_one(input)
        features = input
        for block in self.net:
            features = self.concat([features, block(features)])
        return features

    def is_fusable(self) -> bool:
        """Whether one op may stand for the layers as they are now, given an input that it takes."""
        if not self.fused or torch_module._has_any_global_hook() or not is_plain(self.net, nn.Sequential):
            return False
        if not (is_plain(self.concat, Concat) and all(_is_plain_layer(layer) for layer in self.net)):
            return False
        norms = [norm for norm, _ in self._layers()]
        if not norms or any(n.training != norms[0].training for n in norms):
            return False
        return all((n.running_mean is None) == (norms[0].running_mean is None) for n in norms)

    def _fuses(self, input: Tensor) -> bool:
        return (
            self.is_fusable()
            and input.dim() == 4
            and input.device.type in ("cpu", "meta")
            and input.is_floating_point()
            and all(p.device == input.device for p in self.parameters())
            and _torch.reason(input, *self.parameters()) is None
        )

    def _layers(self) -> list[tuple[BatchNormReLU2d, Conv2d]]:
        """Batch norm and convolution of each layer, all of them plain."""
        layers: list[Any] = list(self.net)
        return [(layer[0], layer[2]) for layer in layers]

    def _as_one(self, input: Tensor) -> Tensor:
        layers, training = [], False
        for norm, conv in self._layers():
            running_mean, running_var, weight, bias, training, momentum, eps = arguments(norm)
            assert weight is not None and bias is not None and conv.bias is not None
            layers.append(
                ops.DenseLayer(running_mean, running_var, weight, bias, conv.weight, conv.bias, momentum, eps)
            )
        return ops.dense_block(input, layers, training)


def _is_plain_layer(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Sequential) or not is_plain(layer, nn.Sequential) or len(layer) != 3:
        return False
    norm, identity, conv = layer[0], layer[1], layer[2]
    if not (isinstance(norm, BatchNormReLU2d) and isinstance(conv, Conv2d)):
        return False
    if not (is_plain(norm, BatchNormReLU2d) and is_plain(identity, nn.Identity) and is_plain(conv, Conv2d)):
        return False
    return (
        norm.weight is not None
        and norm.bias is not None
        and conv.bias is not None
        and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and (conv.groups, conv.padding_mode, conv._fused_activation) == (1, "zeros", None)
    )
