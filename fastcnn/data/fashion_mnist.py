"""Fashion-MNIST from its four IDX files, which the user brings or torchvision downloads."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from fastcnn.data.augment import augmentation
from fastcnn.data.batches import ImageBatches
from fastcnn.data.errors import DataError, MissingExtraError, require
from fastcnn.data.idx import read_idx

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
SOURCE = "https://github.com/zalandoresearch/fashion-mnist"
TORCHVISION_FOLDER = Path("FashionMNIST", "raw")  # where torchvision keeps the same files under its root
CLASSES = 10


def load_data_fashion_mnist(
    batch_size: int,
    resize: int | None = None,
    root: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    augment: bool = False,
    shard: tuple[int, int] | None = None,
    download: bool = True,
) -> tuple[ImageBatches, ImageBatches]:
    """Load Fashion-MNIST as `(train, test)` batches of Tensor[B, 1, 28, 28], or [B, 1, resize, resize].

    The data set's own split: 60,000 training and 10,000 test images.

    Args:
        batch_size: images in a batch, over all processes.
        resize: height and width in pixels, or None for the files' 28.
        root: folder of the four .gz files, or torchvision's root; None for `default_root()`.
        seed: seed of the order of the training images.
        augment: flip, crop and change the brightness of training images (needs torchvision).
        shard: `(rank, world_size)`; None takes it from torch.distributed where that is initialised.
        download: where files are missing, let torchvision download them if it is installed.

    Raises:
        DataError: files are missing and cannot be downloaded, or one is truncated or foreign.
        MissingExtraError: `augment` without torchvision.
    """
    folder = _find_files(Path(root) if root is not None else default_root(), download)
    train, test = _read_pair(folder, *FILES[:2]), _read_pair(folder, *FILES[2:])
    transform = augmentation(resize or train[0].shape[-1]) if augment else None
    return (
        ImageBatches(*train, batch_size, shuffle=True, seed=seed, resize=resize, transform=transform, shard=shard),
        ImageBatches(*test, batch_size, resize=resize, shard=shard),
    )


def default_root() -> Path:
    """Return the folder used where none is given: fastcnn/fashion-mnist in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fastcnn" / "fashion-mnist"


def _find_files(root: Path, download: bool) -> Path:
    folder = _folder_with_all(root)
    if folder is not None:
        return folder
    why_not = _download(root) if download else "downloading was not asked for"
    folder = _folder_with_all(root)
    if folder is not None:
        return folder
    missing = ", ".join(name for name in FILES if not (root / name).is_file())
    raise DataError(f"Fashion-MNIST: put {missing} (from {SOURCE}) into {root} ({why_not})")


def _folder_with_all(root: Path) -> Path | None:
    for folder in (root, root / TORCHVISION_FOLDER):
        if all((folder / name).is_file() for name in FILES):
            return folder
    return None


def _download(root: Path) -> str:
    """Let torchvision download into `root`; return why that did not work, or an empty string."""
    try:
        datasets = require("torchvision.datasets", "downloading", "torchvision")
        datasets.FashionMNIST(str(root), train=True, download=True)
    except MissingExtraError:
        return "torchvision, which could download them, is not installed"
    except (OSError, RuntimeError) as error:  # URLError and HTTPError are OSErrors
        return f"torchvision could not download them: {error}"
    return ""


def _read_pair(folder: Path, images_name: str, labels_name: str) -> tuple[Tensor, Tensor]:
    images = read_idx(folder / images_name, 3)
    labels = read_idx(folder / labels_name, 1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {images_name} has {len(images)} images, but {labels_name} {len(labels)} labels")
    if int(labels.max()) >= CLASSES:
        raise DataError(f"{folder / labels_name}: label {int(labels.max())} is not one of the {CLASSES} classes")
    return images.unsqueeze(1), labels.long()
