"""ImageBatches: order, shares, resizing."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.data import ImageBatches, resize_images


def numbered(count, size=4):
    """Images that can be told apart: image i is filled with i, and so is its label."""
    labels = torch.arange(count)
    return labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, size, size).contiguous(), labels


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def drawn(batches):
    return [labels.tolist() for _, labels in batches]


def test_batches_scale_to_one_and_stay_channels_last():
    images, labels = numbered(10)
    images[3] = 255
    batch, batch_labels = next(iter(ImageBatches(images, labels, 10)))
    assert batch.dtype == torch.float32 and batch_labels.dtype == torch.int64
    assert batch[3].min() == 1 and torch.equal(batch[7], torch.full((1, 4, 4), 7 / 255))
    assert batch.stride() == (16, 1, 4, 1)


def test_batches_keep_images_with_their_labels_when_shuffled():
    for images, labels in ImageBatches(*numbered(100), 16, shuffle=True):
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels)


def test_batches_shuffle_each_epoch_anew_and_by_seed_alone():
    first = ImageBatches(*numbered(100), 16, shuffle=True, seed=3)
    second = ImageBatches(*numbered(100), 16, shuffle=True, seed=3)
    epochs = [drawn(first), drawn(first)]
    assert all(sorted(flat(epoch)) == list(range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    second.set_epoch(1)
    assert drawn(second) == epochs[1]
    assert drawn(ImageBatches(*numbered(100), 16, shuffle=True, seed=4)) != epochs[0]


def test_batches_last_one_is_smaller():
    batches = ImageBatches(*numbered(10), 4)
    assert drawn(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(batches) == 3 and batches.num_examples == 10


def test_batches_of_two_processes_make_up_those_of_one():
    whole = drawn(ImageBatches(*numbered(40), 8, shuffle=True, seed=1))
    shards = [ImageBatches(*numbered(40), 8, shuffle=True, seed=1, shard=(rank, 2)) for rank in range(2)]
    assert [shard.shard_size for shard in shards] == [20, 20]
    for batch, left, right in zip(whole, *map(drawn, shards), strict=True):
        assert len(left) == len(right) and sorted(left + right) == sorted(batch)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("count", [9, 10, 11])
def test_batches_are_padded_to_equal_shares_for_training_only(count, world):
    for shuffle in (True, False):
        shards = [ImageBatches(*numbered(count), 4, shuffle=shuffle, shard=(rank, world)) for rank in range(world)]
        parts = [drawn(shard) for shard in shards]
        seen = flat(flat(parts))
        assert [len(flat(part)) for part in parts] == [shard.shard_size for shard in shards]
        if shuffle:
            assert len({tuple(map(len, part)) for part in parts}) == 1
            assert set(seen) == set(range(count)) and len(seen) == -(-count // world) * world
        else:
            assert sorted(seen) == list(range(count))


@pytest.mark.parametrize("size", [14, 32, 96])
def test_resize_gives_what_pillow_gives(size):
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = [
        np.asarray(Image.fromarray(i[0].numpy()).resize((size, size), Image.Resampling.BILINEAR)) for i in images
    ]
    difference = resize_images(images, size)[:, 0].int() - torch.from_numpy(np.stack(expected)).int()
    assert difference.abs().max() <= 1  # both round; the weights are fixed-point numbers of their own


def test_resize_is_the_same_with_and_without_cache():
    images = torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kept, again = (
        ImageBatches(images, torch.arange(20), 8, shuffle=True, resize=40, cache_bytes=limit)
        for limit in (20 * 40 * 40, 1)
    )
    for _ in range(2):
        for (x, labels), (y, other_labels) in zip(kept, again, strict=True):
            assert x.shape == (len(labels), 1, 40, 40)
            assert torch.equal(x, y) and torch.equal(labels, other_labels)
    assert kept._resized is not None and again._resized is None


def test_batches_apply_the_transform_to_resized_bytes():
    seen = []

    def invert(images):
        seen.append((images.dtype, tuple(images.shape)))
        return 255 - images

    batch, _ = next(iter(ImageBatches(*numbered(4), 4, resize=8, transform=invert)))
    assert seen == [(torch.uint8, (4, 1, 8, 8))]
    assert batch[0].min() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 1, 4, 4)}, "expected uint8 images"),
        ({"images": torch.zeros(4, 4, 4, dtype=torch.uint8)}, r"\[4, 4, 4\]"),
        ({"labels": torch.zeros(3)}, "3 labels for 4 images"),
        ({"images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8), "labels": torch.zeros(0)}, "0 labels for 0 images"),
        ({"batch_size": 0}, "batch size of at least 1, but got 0"),
        ({"resize": 0}, "resize=0"),
        ({"batch_size": 3, "shard": (0, 2)}, "batch size 3 cannot be shared equally by 2"),
    ],
)
def test_batches_refuse_bad_arguments(change, message):
    images, labels = numbered(4)
    arguments = {"images": images, "labels": labels, "batch_size": 2, **change}
    with pytest.raises(ValueError, match=message):
        ImageBatches(**arguments)
