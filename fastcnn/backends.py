"""Switches for how fastcnn's ops choose their kernels. Each thread has its own; a backward runs under its forward's."""

from __future__ import annotations

from types import TracebackType

from fastcnn import _library


class fallback:  # noqa: N801 - reads as a function, and works as a context manager
    """Sets whether torch's own op may run where no kernel of fastcnn covers the case (default True).

    ``fastcnn.backends.fallback(False)`` sets it from here on; ``with fastcnn.backends.fallback(False):`` for a block.
    With it off such a call raises NotImplementedError. The switch belongs to the calling thread.

    Args:
        enabled: whether torch's own op may run.
    """

    def __init__(self, enabled: bool) -> None:
        """Sets the switch; see the class."""
        self._previous = bool(_library.load().fastcnn_set_fallback(int(enabled)))

    def __enter__(self) -> None:
        """Leaves the switch as set."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts back what the switch was before."""
        _library.load().fastcnn_set_fallback(int(self._previous))


def fallback_enabled() -> bool:
    """Whether torch's own op may run where no kernel of fastcnn covers the case, in this thread."""
    return bool(_library.load().fastcnn_get_fallback())
