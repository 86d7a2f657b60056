"""ResNet-18 and ResNet-34: blocks that learn what to add to their input.

He, Zhang, Ren, Sun: Deep residual learning for image recognition. CVPR 2016. ResNet-50 is torchvision's: convert that.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastcnn.models.layers import LayerSet, check_positive, layer_set

STAGE_CHANNELS = (64, 128, 256, 512)
# depth: residual blocks in each of the four stages
RESIDUALS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class Residual(nn.Module):
    """conv 3x3, BatchNorm, ReLU, conv 3x3, BatchNorm, plus the input, ReLU.

    With use_1x1conv the input goes through a 1x1 convolution of the same stride, without BatchNorm (unlike the
    paper's, as in the textbook).
    """

    def __init__(
        self, make: LayerSet, in_channels: int, out_channels: int, use_1x1conv: bool = False, stride: int = 1
    ) -> None:
        """Builds the block from the layers of `make`."""
        super().__init__()
        self.conv1 = make.conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
        self.conv2 = make.conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv3 = make.conv2d(in_channels, out_channels, kernel_size=1, stride=stride) if use_1x1conv else None
        self.bn1 = make.batch_norm_relu2d(out_channels)
        self.bn2 = make.batch_norm_relu2d(out_channels)
        self.relu = make.relu()
        self.fused = make.fused

    def forward(self, input: Tensor) -> Tensor:
        """Tensor[N, in_channels, H, W] to Tensor[N, out_channels, H / stride, W / stride], sizes rounded up."""
        shortcut = input if self.conv3 is None else self.conv3(input)
        hidden = self.conv2(self.relu(self.bn1(self.conv1(input))))
        total = self.bn2(hidden, residual=shortcut) if self.fused else self.bn2(hidden) + shortcut
        output: Tensor = self.relu(total)
        return output


def resnet_stage(make: LayerSet, in_channels: int, out_channels: int, num_residuals: int, first: bool) -> nn.Sequential:
    """Residual blocks, of which the first halves the image, except in the first stage."""
    blocks = []
    for index in range(num_residuals):
        if index == 0 and not first:
            blocks.append(Residual(make, in_channels, out_channels, use_1x1conv=True, stride=2))
        else:
            blocks.append(Residual(make, out_channels, out_channels))
    return nn.Sequential(*blocks)


def resnet(in_channels: int = 1, num_classes: int = 10, depth: int = 18, layers: str = "fastcnn") -> nn.Sequential:
    """ResNet-18 or ResNet-34 of the textbook's block, meant for images of 96 x 96 pixels.

    Args:
        in_channels: channels of the input. Default: 1.
        num_classes: length of the output. Default: 10.
        depth: 18 or 34. Default: 18.
        layers: "fastcnn" or "torch", the layers to build from. Default: "fastcnn".

    Returns:
        A module from Tensor[N, in_channels, H, W] of any image size to Tensor[N, num_classes]. In training mode
        N * H * W must leave more than one value per channel in the last stage: N > 1 for images up to 32 pixels.

    Raises:
        ValueError: an argument is out of its range, or `layers` is unknown.
    """
    check_positive("resnet", in_channels=in_channels, num_classes=num_classes)
    if depth not in RESIDUALS:
        raise ValueError(f"resnet: expected depth to be one of {sorted(RESIDUALS)}, but got {depth!r}")
    make = layer_set(layers)

    channels = STAGE_CHANNELS[0]
    stem = nn.Sequential(
        make.conv2d(in_channels, channels, kernel_size=7, stride=2, padding=3),
        make.batch_norm_relu2d(channels),
        make.relu(),
        make.max_pool2d(kernel_size=3, stride=2, padding=1),
    )
    stages = []
    for index, (num_residuals, out_channels) in enumerate(zip(RESIDUALS[depth], STAGE_CHANNELS, strict=True)):
        stages.append(resnet_stage(make, channels, out_channels, num_residuals, first=index == 0))
        channels = out_channels
    return nn.Sequential(stem, *stages, make.global_avg_pool2d(), nn.Flatten(), nn.Linear(channels, num_classes))
