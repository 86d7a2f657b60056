"""Convolutional networks in PyTorch, faster: the same modules, state and gradients, less time and memory."""

from fastcnn import _library

_library.load()

from fastcnn import backends, data, models, nn, ops, reference, train  # noqa: E402 - the ops exist once the library is loaded
from fastcnn.compilation import compile, load  # noqa: E402
from fastcnn.conversion import convert, revert  # noqa: E402
from fastcnn.explanation import explain  # noqa: E402
from fastcnn.nn import *  # noqa: E402, F403
from fastcnn.nn import __all__ as _layers  # noqa: E402

__version__: str = _library.build_info()["fastcnn_version"]

__all__ = [
    "backends",
    "compile",
    "convert",
    "data",
    "explain",
    "load",
    "models",
    "nn",
    "ops",
    "reference",
    "revert",
    "train",
    *_layers,
]
