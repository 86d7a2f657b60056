"""Random changes to training images, by torchvision's transforms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastcnn.data.errors import require

PADDING_FRACTION = 8  # crops move by up to an eighth of the image, as the 4 pixels usual for 32 x 32
BRIGHTNESS = 0.4


def augmentation(size: int) -> Callable[[Tensor], Tensor]:
    """Return a transform of uint8 Tensor[B, C, size, size]: each image is flipped left to right with probability
    1/2, cropped at a random place after zero padding by size / 8, and changed in brightness by up to 40 percent.

    The random numbers come from torch's global generator.

    Raises:
        MissingExtraError: torchvision is not installed.
    """
    transforms = require("torchvision.transforms.v2", "augmentation", "torchvision")
    change = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(size, padding=max(1, size // PADDING_FRACTION)),
            transforms.ColorJitter(brightness=BRIGHTNESS),
        ]
    )
    return lambda images: torch.stack([change(image) for image in images])
