"""The IDX files of the MNIST family: big-endian magic number and sizes, then the values as bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastcnn.data.errors import DataError

UNSIGNED_BYTE = 0x08
MAX_VALUES = 1 << 31  # far above any file of this family; keeps a damaged header from asking for memory


def read_idx(path: Path, dims: int) -> Tensor:
    """Read a gzipped IDX file of unsigned bytes with `dims` dimensions as a uint8 tensor of its shape.

    Raises:
        DataError: the file is not gzip, not IDX with `dims` dimensions, or shorter or longer than its header says.
    """
    try:
        with gzip.open(path, "rb") as file:
            header = file.read(4 + 4 * dims)
            shape = _parse_header(path, header, dims)
            count = math.prod(shape)
            values = file.read(count)
            if len(values) < count:
                raise DataError(f"{path}: truncated: its header promises {count} values, but {len(values)} are there")
            if file.read(1):  # also makes gzip check the file's checksum
                raise DataError(f"{path}: not the expected IDX file: more data than the {count} values of its header")
    except EOFError as error:
        raise DataError(f"{path}: truncated: {error}; download it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error
    return torch.from_numpy(np.frombuffer(values, dtype=np.uint8).copy()).reshape(shape)


def _parse_header(path: Path, header: bytes, dims: int) -> tuple[int, ...]:
    expected = UNSIGNED_BYTE << 8 | dims
    magic = int.from_bytes(header[:4], "big")
    if len(header) >= 4 and magic != expected:
        raise DataError(f"{path}: not the expected IDX file: magic number 0x{magic:08x} instead of 0x{expected:08x}")
    if len(header) < 4 + 4 * dims:
        raise DataError(f"{path}: truncated: {len(header)} bytes are no whole IDX header")
    shape = struct.unpack(f">{dims}I", header[4:])
    if not 0 < math.prod(shape) <= MAX_VALUES:
        raise DataError(f"{path}: not the expected IDX file: its header gives the sizes {list(shape)}")
    return shape
