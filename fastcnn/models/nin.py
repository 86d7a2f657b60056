"""NiN: 1x1 convolutions after each larger one, and global average pooling where others have linear layers.

Lin, Chen, Yan: Network in network. ICLR 2014.
"""

from __future__ import annotations

from torch import nn

from fastcnn.models.layers import LayerSet, check_positive, layer_set

# (kernel size, output channels, stride, padding); max pooling 3/2 after each
BLOCKS = ((11, 96, 4, 0), (5, 256, 1, 2), (3, 384, 1, 1))


def nin_block(
    make: LayerSet, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int
) -> nn.Sequential:
    """A convolution and two 1x1 convolutions, each followed by ReLU."""
    return nn.Sequential(
        make.conv2d_relu(in_channels, out_channels, kernel_size, stride, padding),
        make.relu(),
        make.conv2d_relu(out_channels, out_channels, kernel_size=1),
        make.relu(),
        make.conv2d_relu(out_channels, out_channels, kernel_size=1),
        make.relu(),
    )


def nin(
    in_channels: int = 1,
    num_classes: int = 10,
    dropout: float = 0.5,
    layers: str = "fastcnn",
) -> nn.Sequential:
    """Network in network, for images of 224 x 224 pixels.

    Args:
        in_channels: channels of the input. Default: 1.
        num_classes: length of the output, and channels of the last block. Default: 10.
        dropout: probability, before the last block; 0 keeps the module in its place. Default: 0.5.
        layers: "fastcnn" or "torch", the layers to build from. Default: "fastcnn".

    Returns:
        A module from Tensor[N, in_channels, 224, 224] to Tensor[N, num_classes]. Other image sizes of at least
        67 pixels work too.

    Raises:
        ValueError: an argument is out of its range, or `layers` is unknown.
    """
    check_positive("nin", in_channels=in_channels, num_classes=num_classes)
    make = layer_set(layers)

    modules: list[nn.Module] = []
    channels = in_channels
    for kernel_size, out_channels, stride, padding in BLOCKS:
        modules.append(nin_block(make, channels, out_channels, kernel_size, stride, padding))
        modules.append(make.max_pool2d(kernel_size=3, stride=2))
        channels = out_channels
    modules.append(nn.Dropout(dropout))
    modules.append(nin_block(make, channels, num_classes, kernel_size=3, stride=1, padding=1))
    modules += [make.global_avg_pool2d(), nn.Flatten()]
    return nn.Sequential(*modules)
