"""Which kernels there are, and which ran."""

from __future__ import annotations

from fastcnn import _library
from fastcnn.explanation.reasons import recorded as recorded


def table() -> list[str]:
    """Every kernel of the kernel table."""
    return str(_library.load().fastcnn_kernels().decode()).split()


def capabilities() -> list[str]:
    """What fastcnn.backends.cpu_capability takes here: all that this CPU has and the environment allows."""
    library = _library.load()
    known, allowed = library.fastcnn_cpu_capabilities(), library.fastcnn_cpu_capability_allowed()
    names = known.decode().split()
    return list(names[: names.index(allowed.decode()) + 1])
