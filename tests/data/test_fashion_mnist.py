"""The IDX reader, and Fashion-MNIST's four files: found, missing, damaged, downloaded."""

import gzip
import struct
import sys
import types

import pytest
import torch

from fastcnn.data import DataError, load_data_fashion_mnist, read_idx
from fastcnn.data.fashion_mnist import FILES


def idx_bytes(values, magic=None):
    shape = values.shape
    header = struct.pack(f">{1 + len(shape)}I", (0x0800 | len(shape)) if magic is None else magic, *shape)
    return header + values.to(torch.uint8).numpy().tobytes()


def images(count):
    return (torch.arange(count * 28 * 28) % 251).reshape(count, 28, 28)


def write_files(folder, train=12, test=5):
    folder.mkdir(parents=True, exist_ok=True)
    contents = [images(train), torch.arange(train) % 10, images(test), torch.arange(test) % 10]
    for name, values in zip(FILES, contents, strict=True):
        (folder / name).write_bytes(gzip.compress(idx_bytes(values)))


def test_read_idx_gives_the_values_in_their_shape(tmp_path):
    file = tmp_path / "values.gz"
    file.write_bytes(gzip.compress(idx_bytes(images(3))))
    assert torch.equal(read_idx(file, 3), images(3).to(torch.uint8))


DAMAGED = {
    "truncated gzip": (gzip.compress(idx_bytes(images(3)))[:-20], "truncated"),
    "truncated checksum": (gzip.compress(idx_bytes(images(3)))[:-4], "truncated"),
    "wrong checksum": (gzip.compress(idx_bytes(images(3)))[:-8] + bytes(8), "not a readable gzip file"),
    "broken gzip": (gzip.compress(bytes(100))[:10] + b"\xff" * 40, "not a readable gzip file"),
    "not gzip": (idx_bytes(images(3)), "not a readable gzip file"),
    "empty": (b"", "truncated"),
    "header cut": (gzip.compress(idx_bytes(images(3))[:9]), "truncated: 9 bytes"),
    "values cut": (gzip.compress(idx_bytes(images(3))[:-1]), "truncated: its header promises 2352 values, but 2351"),
    "too long": (gzip.compress(idx_bytes(images(3)) + b"x"), "more data than the 2352 values"),
    "labels instead": (
        gzip.compress(idx_bytes(torch.arange(40) % 10)),
        "magic number 0x00000801 instead of 0x00000803",
    ),
    "floats": (gzip.compress(idx_bytes(images(3), magic=0x0D03)), "magic number 0x00000d03"),
    "no images": (gzip.compress(idx_bytes(torch.zeros(0, 28, 28))), r"sizes \[0, 28, 28\]"),
    "huge sizes": (gzip.compress(struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1)), "gives the sizes"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_read_idx_refuses_a_damaged_file_by_name(content, message, tmp_path):
    file = tmp_path / FILES[0]
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_idx(file, 3)
    assert str(error.value).startswith(str(file))


@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_the_root_or_torchvisions_folder(inside, tmp_path):
    write_files(tmp_path / inside)
    train, test = load_data_fashion_mnist(5, root=tmp_path)
    assert (train.num_examples, test.num_examples) == (12, 5)
    batch, labels = next(iter(test))
    assert torch.equal(labels, torch.arange(5))
    assert torch.equal((batch[:, 0] * 255).round(), images(5).float())
    assert next(iter(load_data_fashion_mnist(5, 32, tmp_path)[0]))[0].shape == (5, 1, 32, 32)


def test_fashion_mnist_says_which_files_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.datasets", raising=False)
    write_files(tmp_path)
    (tmp_path / FILES[1]).unlink()
    (tmp_path / FILES[2]).unlink()
    with pytest.raises(DataError) as error:
        load_data_fashion_mnist(5, root=tmp_path)
    message = str(error.value)
    assert f"put {FILES[1]}, {FILES[2]} " in message and f"into {tmp_path} " in message
    assert FILES[0] not in message and "not installed" in message


def torchvision_that(monkeypatch, download):
    class FashionMNIST:
        def __init__(self, root, train, download):
            action(root)

    action = download
    package = types.ModuleType("torchvision")
    package.datasets = types.ModuleType("torchvision.datasets")
    package.datasets.FashionMNIST = FashionMNIST
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", package.datasets)


def test_fashion_mnist_is_downloaded_by_torchvision(tmp_path, monkeypatch):
    torchvision_that(monkeypatch, lambda root: write_files(tmp_path / "FashionMNIST" / "raw"))
    assert load_data_fashion_mnist(5, root=tmp_path)[0].num_examples == 12


def test_fashion_mnist_says_why_the_download_failed(tmp_path, monkeypatch):
    def fail(root):
        raise OSError("no route to host")

    torchvision_that(monkeypatch, fail)
    with pytest.raises(DataError, match=r"could not download them: no route to host"):
        load_data_fashion_mnist(5, root=tmp_path)
    with pytest.raises(DataError, match=r"not asked for"):
        load_data_fashion_mnist(5, root=tmp_path, download=False)


def test_fashion_mnist_refuses_labels_of_other_images(tmp_path):
    write_files(tmp_path)
    (tmp_path / FILES[1]).write_bytes(gzip.compress(idx_bytes(torch.arange(7))))
    with pytest.raises(DataError, match=r"has 12 images, but train-labels-idx1-ubyte\.gz 7 labels"):
        load_data_fashion_mnist(5, root=tmp_path)


def test_fashion_mnist_refuses_a_label_that_is_no_class(tmp_path):
    write_files(tmp_path)
    (tmp_path / FILES[3]).write_bytes(gzip.compress(idx_bytes(torch.tensor([1, 2, 10, 0, 0]))))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: label 10"):
        load_data_fashion_mnist(5, root=tmp_path)
