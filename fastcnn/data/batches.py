"""Batches cut from tensors in memory: no worker processes and no per-image Python, so that loading does not
limit the small networks. Images stay uint8 until their batch is drawn; reading files is not done here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

# Resized images are kept when they fit into this many bytes. 60,000 images of 96 x 96 take 553 MB and do;
# the same at 224 x 224 would take 3 GB, and are resized again in every batch.
CACHE_BYTES = 1 << 30
# Rows resized at once while the cache is filled: bounds the temporary memory.
CACHE_CHUNK = 2048
# Spreads the shuffles of neighbouring seeds apart: seed 0 in epoch 1 is not seed 1 in epoch 0.
SEED_STRIDE = 1_000_003


class ImageBatches:
    """An iterable of `(images, labels)` batches, shuffled anew, and reproducibly, in each epoch.

    Images come as float32 Tensor[B, C, H, W] in [0, 1], channels_last; labels as int64 Tensor[B]. Resizing is
    the textbook's: the whole image, bilinear with antialiasing, rounded to 8 bits.

    Args:
        images: uint8 Tensor[N, C, H, W].
        labels: int64 Tensor[N].
        batch_size: images in a batch, over all processes; the last batch may be smaller.
        shuffle: draw the images in a new order in each epoch, given by `seed` and the epoch's number alone.
        seed: seed of the order.
        resize: height and width in pixels, or None to keep the images' own.
        transform: applied to each batch of uint8 images after resizing (see `fastcnn.data.augmentation`).
        shard: `(rank, world_size)`; None takes it from torch.distributed where that is initialised.
            Each process draws its part of every batch. Shuffled data is padded with images from the front of
            the order, so that all parts are equal; data in file order (evaluation) is not.
        cache_bytes: keep resized images where they fit into this many bytes.

    Raises:
        ValueError: for empty or inconsistent data, sizes below 1, or a batch size that the processes cannot
            share equally.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        resize: int | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        shard: tuple[int, int] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Check the sizes; the class says what the arguments are. Nothing is resized yet."""
        if images.dim() != 4 or images.dtype != torch.uint8:
            raise ValueError(f"expected uint8 images [N, C, H, W], but got {images.dtype} {list(images.shape)}")
        if labels.dim() != 1 or len(labels) != len(images) or len(images) == 0:
            raise ValueError(f"expected one label an image, but got {len(labels)} labels for {len(images)} images")
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, but got {batch_size}")
        if resize is not None and resize < 1:
            raise ValueError(f"expected a size of at least 1 pixel, but got resize={resize}")
        self.rank, self.world_size = shard if shard is not None else _current_shard()
        if batch_size % self.world_size != 0:
            raise ValueError(f"batch size {batch_size} cannot be shared equally by {self.world_size} processes")
        self.images, self.labels, self.batch_size = images, labels.long(), batch_size
        self.shuffle, self.seed, self.resize, self.transform = shuffle, seed, resize, transform
        self.cache_bytes = cache_bytes
        self.epoch = 0
        self._resized: Tensor | None = None

    @property
    def num_examples(self) -> int:
        """Images in the whole data set, over all processes."""
        return len(self.images)

    @property
    def shard_size(self) -> int:
        """Images that this process draws in an iteration."""
        extra = self.world_size - 1 if self.shuffle else self.world_size - 1 - self.rank
        return (self.num_examples + extra) // self.world_size

    def __len__(self) -> int:
        """Batches in an iteration, before they are shared out."""
        return -(-self.num_examples // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; each iteration moves on by one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw this process's part of every batch."""
        order = self._order()
        self.epoch += 1
        for start in range(0, len(order), self.batch_size):
            index = self._share(order[start : start + self.batch_size])
            if len(index) == 0:  # evaluation only: the last batch has fewer images than there are processes
                continue
            images = self._take(index)
            if self.transform is not None:
                images = self.transform(images)
            # .to with a memory format gives even one-channel images channels_last strides; the bytes are the same.
            batch = images.to(torch.float32).div_(255).to(memory_format=torch.channels_last)
            yield batch, self.labels[index]

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.num_examples)
        generator = torch.Generator().manual_seed(self.seed * SEED_STRIDE + self.epoch)
        order = torch.randperm(self.num_examples, generator=generator)
        padding = -len(order) % self.world_size
        return torch.cat([order, order.repeat(padding // len(order) + 1)[:padding]])

    def _share(self, index: Tensor) -> Tensor:
        return index[self.rank :: self.world_size]

    def _take(self, index: Tensor) -> Tensor:
        if self.resize is None or self.images.shape[-2:] == (self.resize, self.resize):
            return self.images[index]
        bytes_needed = self.images.shape[0] * self.images.shape[1] * self.resize * self.resize
        if bytes_needed > self.cache_bytes:
            return resize_images(self.images[index], self.resize)
        if self._resized is None:
            chunks = torch.split(self.images, CACHE_CHUNK)
            self._resized = torch.cat([resize_images(chunk, self.resize) for chunk in chunks])
        return self._resized[index]


def resize_images(images: Tensor, size: int) -> Tensor:
    """Resize uint8 Tensor[N, C, H, W] to uint8 Tensor[N, C, size, size]: bilinear, antialiased, to the nearest."""
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def _current_shard() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
