"""VGG: blocks of 3x3 convolutions, each block halving the image.

Simonyan, Zisserman: Very deep convolutional networks for large-scale image recognition. ICLR 2015.
"""

from __future__ import annotations

from torch import nn

from fastcnn.models.layers import LayerSet, check_positive, layer_set

INPUT_SIZE = 224

BLOCK_CHANNELS = (64, 128, 256, 512, 512)
# depth: convolutions in each of the five blocks
CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def vgg_block(make: LayerSet, num_convs: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """num_convs times [3x3 convolution, ReLU], then max pooling 2x2."""
    modules: list[nn.Module] = []
    for _ in range(num_convs):
        modules += [make.conv2d_relu(in_channels, out_channels, kernel_size=3, padding=1), make.relu()]
        in_channels = out_channels
    modules.append(make.max_pool2d(kernel_size=2, stride=2))
    return nn.Sequential(*modules)


def vgg(
    in_channels: int = 1,
    num_classes: int = 10,
    depth: int = 11,
    width_divisor: int = 1,
    hidden_units: int = 4096,
    dropout: float = 0.5,
    layers: str = "fastcnn",
) -> nn.Sequential:
    """VGG for images of 224 x 224 pixels.

    Args:
        in_channels: channels of the input. Default: 1.
        num_classes: length of the output. Default: 10.
        depth: layers with weights: 11, 13, 16 or 19. Default: 11.
        width_divisor: divides the channels of every convolution; must divide 64. Default: 1.
        hidden_units: width of the two hidden linear layers. Default: 4096.
        dropout: probability, after each hidden linear layer. Default: 0.5.
        layers: "fastcnn" or "torch", the layers to build from. Default: "fastcnn".

    Returns:
        A module from Tensor[N, in_channels, 224, 224] to Tensor[N, num_classes].

    Raises:
        ValueError: an argument is out of its range, or `layers` is unknown.
    """
    check_positive(
        "vgg",
        in_channels=in_channels,
        num_classes=num_classes,
        width_divisor=width_divisor,
        hidden_units=hidden_units,
    )
    if depth not in CONVOLUTIONS:
        raise ValueError(f"vgg: expected depth to be one of {sorted(CONVOLUTIONS)}, but got {depth!r}")
    if BLOCK_CHANNELS[0] % width_divisor != 0:
        raise ValueError(f"vgg: expected width_divisor to divide {BLOCK_CHANNELS[0]}, but got {width_divisor}")
    make = layer_set(layers)

    modules: list[nn.Module] = []
    channels = in_channels
    for num_convs, block_channels in zip(CONVOLUTIONS[depth], BLOCK_CHANNELS, strict=True):
        out_channels = block_channels // width_divisor
        modules.append(vgg_block(make, num_convs, channels, out_channels))
        channels = out_channels

    size = INPUT_SIZE // 2 ** len(BLOCK_CHANNELS)
    modules += [make.flatten(), nn.Linear(channels * size * size, hidden_units), nn.ReLU(), nn.Dropout(dropout)]
    modules += [nn.Linear(hidden_units, hidden_units), nn.ReLU(), nn.Dropout(dropout)]
    modules.append(nn.Linear(hidden_units, num_classes))
    return nn.Sequential(*modules)
