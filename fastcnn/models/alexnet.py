"""AlexNet, on one graphics card's worth of channels and without local response normalization.

Krizhevsky, Sutskever, Hinton: ImageNet classification with deep convolutional neural networks. NeurIPS 2012.
"""

from __future__ import annotations

from torch import nn

from fastcnn.models.layers import check_positive, layer_set

# (kernel size, output channels, stride, padding, max pooling 3/2 after it)
CONVOLUTIONS = (
    (11, 96, 4, 1, True),
    (5, 256, 1, 2, True),
    (3, 384, 1, 1, False),
    (3, 384, 1, 1, False),
    (3, 256, 1, 1, True),
)
FEATURES = 256 * 5 * 5
HIDDEN_UNITS = 4096


def alexnet(
    in_channels: int = 1,
    num_classes: int = 10,
    padding: int = 1,
    hidden_layers: int = 2,
    dropout: float = 0.5,
    layers: str = "fastcnn",
) -> nn.Sequential:
    """AlexNet for images of 224 x 224 pixels.

    Args:
        in_channels: channels of the input. Default: 1.
        num_classes: length of the output. Default: 10.
        padding: of the first convolution, 0 or 1; all shapes are the same with both. Default: 1.
        hidden_layers: hidden linear layers of 4096 units, 1 or 2. Default: 2.
        dropout: probability, after each hidden linear layer. Default: 0.5.
        layers: "fastcnn" or "torch", the layers to build from. Default: "fastcnn".

    Returns:
        A module from Tensor[N, in_channels, 224, 224] to Tensor[N, num_classes].

    Raises:
        ValueError: an argument is out of its range, or `layers` is unknown.
    """
    check_positive("alexnet", in_channels=in_channels, num_classes=num_classes)
    if padding not in (0, 1):
        raise ValueError(f"alexnet: expected padding to be 0 or 1, but got {padding!r}")
    if hidden_layers not in (1, 2):
        raise ValueError(f"alexnet: expected hidden_layers to be 1 or 2, but got {hidden_layers!r}")
    make = layer_set(layers)

    modules: list[nn.Module] = []
    channels = in_channels
    for index, (kernel_size, out_channels, stride, default_padding, pooled) in enumerate(CONVOLUTIONS):
        pad = padding if index == 0 else default_padding
        modules += [make.conv2d_relu(channels, out_channels, kernel_size, stride, pad), make.relu()]
        if pooled:
            modules.append(make.max_pool2d(kernel_size=3, stride=2))
        channels = out_channels

    modules.append(make.flatten())
    features = FEATURES
    for _ in range(hidden_layers):
        modules += [nn.Linear(features, HIDDEN_UNITS), nn.ReLU(), nn.Dropout(dropout)]
        features = HIDDEN_UNITS
    modules.append(nn.Linear(features, num_classes))
    return nn.Sequential(*modules)
