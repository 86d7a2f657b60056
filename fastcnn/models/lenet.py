"""LeNet, with sigmoids as in 1998, and its variants with max pooling and with batch normalization.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. Proc. IEEE 86(11), 1998.
Ioffe, Szegedy: Batch normalization: accelerating deep network training by reducing internal covariate shift. ICML 2015.
"""

from __future__ import annotations

from torch import nn

from fastcnn.models.layers import check_positive, layer_set

INPUT_SIZE = 28

CONV_CHANNELS = (6, 16)
HIDDEN_UNITS = (120, 84)


def lenet(
    in_channels: int = 1,
    num_classes: int = 10,
    batch_norm: bool = False,
    pool: str = "avg",
    layers: str = "fastcnn",
) -> nn.Sequential:
    """LeNet for images of 28 x 28 pixels.

    Args:
        in_channels: channels of the input. Default: 1.
        num_classes: length of the output. Default: 10.
        batch_norm: puts BatchNorm between each convolution or linear layer, except the last, and its sigmoid; the
            first convolution then has no padding. Default: False.
        pool: "avg" or "max". Default: "avg".
        layers: "fastcnn" or "torch", the layers to build from. Default: "fastcnn".

    Returns:
        A module from Tensor[N, in_channels, 28, 28] to Tensor[N, num_classes].

    Raises:
        ValueError: a size is not positive, or `pool` or `layers` is unknown.
    """
    check_positive("lenet", in_channels=in_channels, num_classes=num_classes)
    if pool not in ("avg", "max"):
        raise ValueError(f"lenet: expected pool to be 'avg' or 'max', but got {pool!r}")
    make = layer_set(layers)
    pool2d = make.avg_pool2d if pool == "avg" else make.max_pool2d

    modules: list[nn.Module] = []
    channels, size = in_channels, INPUT_SIZE
    for index, out_channels in enumerate(CONV_CHANNELS):
        padding = 2 if index == 0 and not batch_norm else 0
        modules.append(make.conv2d(channels, out_channels, kernel_size=5, padding=padding))
        if batch_norm:
            modules.append(make.batch_norm2d(out_channels))
        modules += [nn.Sigmoid(), pool2d(kernel_size=2, stride=2)]
        channels, size = out_channels, (size + 2 * padding - 4) // 2

    modules.append(make.flatten())
    features = channels * size * size
    for units in HIDDEN_UNITS:
        modules.append(nn.Linear(features, units))
        if batch_norm:
            modules.append(make.batch_norm1d(units))
        modules.append(nn.Sigmoid())
        features = units
    modules.append(nn.Linear(features, num_classes))
    return nn.Sequential(*modules)
