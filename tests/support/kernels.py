"""Which kernels ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastcnn import _library


def table() -> list[str]:
    """Every kernel of the kernel table."""
    return str(_library.load().fastcnn_kernels().decode()).split()


def recorded(call: Callable[[], Any]) -> list[str]:
    """The kernels that `call` ran, in order."""
    library = _library.load()
    library.fastcnn_record_kernels(1)
    try:
        call()
    finally:
        library.fastcnn_record_kernels(0)
    return str(library.fastcnn_recorded_kernels().decode()).split()
