"""GoogLeNet: Inception blocks, four paths side by side; without the auxiliary classifiers of the paper.

Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich: Going deeper with convolutions. CVPR 2015.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastcnn.models.layers import LayerSet, check_positive, layer_set

# The Inception blocks of stages 3, 4 and 5: output channels of path 1, path 2 (both convolutions), path 3 (both)
# and path 4.
STAGES: tuple[tuple[tuple[int, tuple[int, int], tuple[int, int], int], ...], ...] = (
    (
        (64, (96, 128), (16, 32), 32),
        (128, (128, 192), (32, 96), 64),
    ),
    (
        (192, (96, 208), (16, 48), 64),
        (160, (112, 224), (24, 64), 64),
        (128, (128, 256), (24, 64), 64),
        (112, (144, 288), (32, 64), 64),
        (256, (160, 320), (32, 128), 128),
    ),
    (
        (256, (160, 320), (32, 128), 128),
        (384, (192, 384), (48, 128), 128),
    ),
)


class Inception(nn.Module):
    """Paths 1x1 | 1x1, 3x3 | 1x1, 5x5 | max pooling 3x3, 1x1, ReLU after each convolution, concat on channels."""

    def __init__(
        self, make: LayerSet, in_channels: int, c1: int, c2: tuple[int, int], c3: tuple[int, int], c4: int
    ) -> None:
        """Builds the block from the layers of `make`."""
        super().__init__()
        self.p1_1 = make.conv2d_relu(in_channels, c1, kernel_size=1)
        self.p2_1 = make.conv2d_relu(in_channels, c2[0], kernel_size=1)
        self.p2_2 = make.conv2d_relu(c2[0], c2[1], kernel_size=3, padding=1)
        self.p3_1 = make.conv2d_relu(in_channels, c3[0], kernel_size=1)
        self.p3_2 = make.conv2d_relu(c3[0], c3[1], kernel_size=5, padding=2)
        self.p4_1 = make.max_pool2d(kernel_size=3, stride=1, padding=1)
        self.p4_2 = make.conv2d_relu(in_channels, c4, kernel_size=1)
        self.relu = make.relu()
        self.concat = make.concat(dim=1)

    def forward(self, input: Tensor) -> Tensor:
        """Tensor[N, in_channels, H, W] to Tensor[N, c1 + c2[1] + c3[1] + c4, H, W]."""
        path1 = self.relu(self.p1_1(input))
        path2 = self.relu(self.p2_2(self.relu(self.p2_1(input))))
        path3 = self.relu(self.p3_2(self.relu(self.p3_1(input))))
        path4 = self.relu(self.p4_2(self.p4_1(input)))
        output: Tensor = self.concat([path1, path2, path3, path4])
        return output


def googlenet(in_channels: int = 1, num_classes: int = 10, layers: str = "fastcnn") -> nn.Sequential:
    """GoogLeNet, meant for images of 96 x 96 pixels.

    Args:
        in_channels: channels of the input. Default: 1.
        num_classes: length of the output. Default: 10.
        layers: "fastcnn" or "torch", the layers to build from. Default: "fastcnn".

    Returns:
        A module from Tensor[N, in_channels, H, W] of any image size to Tensor[N, num_classes].

    Raises:
        ValueError: a size is not positive, or `layers` is unknown.
    """
    check_positive("googlenet", in_channels=in_channels, num_classes=num_classes)
    make = layer_set(layers)

    def half_size() -> nn.Module:
        return make.max_pool2d(kernel_size=3, stride=2, padding=1)

    stage1 = [make.conv2d_relu(in_channels, 64, kernel_size=7, stride=2, padding=3), make.relu(), half_size()]
    stage2 = [
        make.conv2d_relu(64, 64, kernel_size=1),
        make.relu(),
        make.conv2d_relu(64, 192, kernel_size=3, padding=1),
        make.relu(),
        half_size(),
    ]
    stages = [nn.Sequential(*stage1), nn.Sequential(*stage2)]
    channels = 192
    for index, blocks in enumerate(STAGES):
        modules: list[nn.Module] = []
        for c1, c2, c3, c4 in blocks:
            modules.append(Inception(make, channels, c1, c2, c3, c4))
            channels = c1 + c2[1] + c3[1] + c4
        last = index == len(STAGES) - 1
        modules += [make.global_avg_pool2d(), nn.Flatten()] if last else [half_size()]
        stages.append(nn.Sequential(*modules))
    return nn.Sequential(*stages, nn.Linear(channels, num_classes))
