"""The file of a compiled network: a head, a JSON document, and the constants as raw numbers.

Little-endian: 8 bytes _MAGIC, 8 bytes length of the JSON, 32 bytes SHA-256 of the JSON, the JSON, then the constants,
each at a multiple of 64 bytes with zeros before it. The JSON is {"version", "program": the document of spec.py,
"tensors": [{"dtype", "shape", "sha256"}]}. The file ends with the last constant. Nothing in it is executed, and nothing
is believed before its checksum fits.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from fastcnn.compilation.spec import Program, dtype_of, is_known, name_of, validate
from fastcnn.train.files import write_atomically

_MAGIC = b"fastcnn\n"
_VERSION = 3
_READABLE = (2, 3)  # programs of version 2 have no inverted residuals
_HEAD = len(_MAGIC) + 8 + 32
_ALIGNMENT = 64  # bytes: a cache line


def write(path: Path, program: Program) -> None:
    """Writes a program.

    Raises:
        RuntimeError: it has a constant of a dtype that files may not hold.
    """
    for constant in program.constants:
        if not is_known(constant.dtype):
            raise RuntimeError(f"fastcnn.compile: files may not hold constants of dtype {constant.dtype}")
    tensors = [
        {
            "dtype": name_of(constant.dtype),
            "shape": list(constant.shape),
            "sha256": hashlib.sha256(_bytes(constant)).hexdigest(),
        }
        for constant in program.constants
    ]
    document = {"version": _VERSION, "program": program.document, "tensors": tensors}
    text = json.dumps(document, separators=(",", ":")).encode()

    def fill(file: IO[bytes]) -> None:
        position = file.write(_MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text)
        for constant in program.constants:
            position += file.write(bytes(_aligned(position) - position))
            position += file.write(_bytes(constant))

    write_atomically(path, fill)


def read(path: Path) -> Program:
    """Reads a program.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is none of ours, not whole, or changed.
    """
    with path.open("rb") as file:
        data = file.read(_HEAD)
        _expect(data[: len(_MAGIC)] == _MAGIC, "it is no file that CompiledModule.save wrote")
        _expect(len(data) >= _HEAD, "it is cut short")
        data += file.read()
    length = int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 8], "little")
    _expect(length <= len(data) - _HEAD, "it is cut short, or its head was changed")
    text = data[_HEAD : _HEAD + length]
    _expect(hashlib.sha256(text).digest() == data[len(_MAGIC) + 8 : _HEAD], "its JSON does not fit its checksum")
    try:
        document = json.loads(text)
        version = document["version"]
        _expect(version in _READABLE, f"it is of version {version}, and this reads {' and '.join(map(str, _READABLE))}")
        program = Program(document["program"], _tensors(data, _HEAD + length, document["tensors"]))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its JSON is not formed as it should be: {type(error).__name__}: {error}") from error
    validate(program)
    return program


def _tensors(data: bytes, position: int, entries: list[dict[str, Any]]) -> list[Tensor]:
    """The constants, which lie from `position` to the end of the file."""
    tensors = []
    for index, entry in enumerate(entries):
        dtype, shape = dtype_of(entry["dtype"]), entry["shape"]
        _expect(all(type(size) is int and 0 <= size < 2**48 for size in shape), f"tensor {index} has no valid shape")
        size = math.prod(shape) * dtype.itemsize
        start = _aligned(position)
        _expect(start + size <= len(data), f"it is cut short: tensor {index} ends beyond it")
        _expect(not any(data[position:start]), f"what lies before tensor {index} was changed")
        raw = data[start : start + size]
        _expect(hashlib.sha256(raw).hexdigest() == entry["sha256"], f"tensor {index} does not fit its checksum")
        flat = torch.frombuffer(bytearray(raw), dtype=dtype) if size else torch.empty(0, dtype=dtype)
        tensors.append(flat.reshape(shape))
        position = start + size
    _expect(len(data) == position, "it has more in it than it says")
    return tensors


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
