"""Files that are either the old one or the new one, never half of it, whatever happens while they are written."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and rename it to `path`."""
    path = path.resolve()  # what a link points to
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".fastcnn-{uuid.uuid4().hex}.tmp")  # others may write to `path` at the same time
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
