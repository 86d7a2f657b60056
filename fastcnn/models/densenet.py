"""DenseNet: every convolution sees the outputs of all before it in its block.

Huang, Liu, van der Maaten, Weinberger: Densely connected convolutional networks. CVPR 2017. DenseNet-121 is
torchvision's: convert that.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fastcnn.models.layers import LayerSet, check_positive, layer_set

STEM_CHANNELS = 64


def transition_block(make: LayerSet, in_channels: int, out_channels: int) -> nn.Sequential:
    """BatchNorm, ReLU, 1x1 convolution, average pooling 2x2: fewer channels, half the image."""
    return nn.Sequential(
        make.batch_norm_relu2d(in_channels),
        make.relu(),
        make.conv2d(in_channels, out_channels, kernel_size=1),
        make.avg_pool2d(kernel_size=2, stride=2),
    )


def densenet(
    in_channels: int = 1,
    num_classes: int = 10,
    num_convs: Sequence[int] = (4, 4, 4, 4),
    growth_rate: int = 32,
    layers: str = "fastcnn",
) -> nn.Sequential:
    """The textbook's DenseNet, meant for images of 96 x 96 pixels.

    Args:
        in_channels: channels of the input. Default: 1.
        num_classes: length of the output. Default: 10.
        num_convs: convolutions in each dense block. Default: (4, 4, 4, 4).
        growth_rate: channels that each convolution adds. Default: 32.
        layers: "fastcnn" or "torch", the layers to build from. Default: "fastcnn".

    Returns:
        A module from Tensor[N, in_channels, H, W] to Tensor[N, num_classes], for images of at least 29 pixels with
        four blocks.

    Raises:
        ValueError: a size is not positive, `num_convs` is empty, or `layers` is unknown.
    """
    check_positive("densenet", in_channels=in_channels, num_classes=num_classes, growth_rate=growth_rate)
    if not num_convs:
        raise ValueError(f"densenet: expected num_convs to name at least one block, but got {num_convs!r}")
    check_positive("densenet", **{f"num_convs[{index}]": number for index, number in enumerate(num_convs)})
    make = layer_set(layers)

    channels = STEM_CHANNELS
    modules: list[nn.Module] = [
        nn.Sequential(
            make.conv2d(in_channels, channels, kernel_size=7, stride=2, padding=3),
            make.batch_norm_relu2d(channels),
            make.relu(),
            make.max_pool2d(kernel_size=3, stride=2, padding=1),
        )
    ]
    for index, convolutions in enumerate(num_convs):
        modules.append(make.dense_block(convolutions, channels, growth_rate))
        channels += convolutions * growth_rate
        if index != len(num_convs) - 1:
            modules.append(transition_block(make, channels, channels // 2))
            channels //= 2
    modules += [make.batch_norm_relu2d(channels), make.relu()]
    modules += [make.global_avg_pool2d(), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(*modules)
