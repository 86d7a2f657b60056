"""Switches for how fastcnn's ops choose their kernels. Each thread has its own; a backward runs under its forward's."""

from __future__ import annotations

from types import TracebackType
from typing import ClassVar

from fastcnn import _library


class _Switch:
    """A switch of the calling thread: set from here on by the call, or for a block as a context manager."""

    _name: ClassVar[bytes]

    def __init__(self, value: int) -> None:
        library = _library.load()
        self._previous = int(library.fastcnn_get_switch(self._name))
        library.fastcnn_set_switch(self._name, int(value))

    def __enter__(self) -> None:
        """Leaves the switch as set."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts back what the switch was before."""
        _library.load().fastcnn_set_switch(self._name, self._previous)


class _Flag(_Switch):
    """A switch that is on or off."""

    def __init__(self, enabled: bool) -> None:
        """Sets the switch; see the class."""
        super().__init__(bool(enabled))


class fallback(_Flag):  # noqa: N801 - reads as a function, and works as a context manager
    """Sets whether torch's own op may run where it is faster or no kernel of fastcnn covers the case (default True).

    ``fastcnn.backends.fallback(False)`` sets it from here on; ``with fastcnn.backends.fallback(False):`` for a block.
    With it off a case that is not covered raises NotImplementedError. The switch belongs to the calling thread.

    Args:
        enabled: whether torch's own op may run.
    """

    _name = b"fallback"


class winograd(_Flag):  # noqa: N801
    """Sets whether convolutions may use Winograd's algorithm (default True).

    Its sums are exact to about 3 times the direct kernels' rounding error, and one infinity or NaN in the input reaches
    every output of the tiles whose windows hold it. Off, convolutions run on the direct kernels. The switch belongs to
    the calling thread.

    Args:
        enabled: whether convolutions may use it.
    """

    _name = b"winograd"


class autotune(_Flag):  # noqa: N801
    """Sets whether a convolution's algorithms are measured at the first use of a shape (default False: a rule chooses).

    As torch.backends.cudnn.benchmark. What was fastest is kept for the process, for each shape, pass and number of
    threads, and in the file that the environment variable FASTCNN_AUTOTUNE_CACHE names, if it does, for later ones on
    such a CPU. Two runs may choose differently, and so differ in rounding; torch.use_deterministic_algorithms(True)
    turns it off, and so do batch_invariant and conv2d_algorithm. The switch belongs to the calling thread.

    Args:
        enabled: whether convolutions are measured.
    """

    _name = b"autotune"


class batch_invariant(_Flag):  # noqa: N801
    """Sets whether an image's result may depend on the batch that it comes in (default False: it may, in rounding).

    On, a convolution's algorithm is chosen by the layer alone, whatever the batch, and torch's own is never chosen.
    The switch belongs to the calling thread.

    Args:
        enabled: whether results must not depend on the batch.
    """

    _name = b"batch_invariant"


class memory_cache(_Flag):  # noqa: N801
    """Sets whether large blocks of memory are kept when they are freed, for later results (default True).

    A fresh block costs a page fault for each of its pages, which can take longer than the op that fills it. Blocks of
    1 MB and more that ops make (results, gradients, scratch) are kept, and given back where they would raise the peak,
    after 10 seconds unused, or by empty_cache(). Blocks that torch's own ops make stay with torch's allocator. The
    switch belongs to the calling thread.

    Args:
        enabled: whether blocks made from here on are kept when they are freed.
    """

    _name = b"memory_cache"


class conv2d_algorithm(_Switch):  # noqa: N801
    """Forces the algorithm of convolutions where it applies (default "automatic", the choice by the rule).

    Args:
        name: "automatic", "direct", "winograd_f4x3", "winograd_f2x3", "winograd_f2x5" or "aten" (torch's own).

    Raises:
        ValueError: there is no algorithm of this name.
    """

    _name = b"conv2d_algorithm"

    def __init__(self, name: str) -> None:
        """Sets the switch; see the class."""
        names = _library.load().fastcnn_conv2d_algorithms().decode().split()
        if name not in names:
            raise ValueError(f"conv2d_algorithm: expected one of {', '.join(names)}, but got {name!r}")
        super().__init__(names.index(name))


def fallback_enabled() -> bool:
    """Whether torch's own op may run where it is faster or no kernel of fastcnn covers the case, in this thread."""
    return bool(_library.load().fastcnn_get_switch(b"fallback"))


def cached_memory() -> int:
    """Bytes of freed blocks that are kept for later results, of all threads."""
    return int(_library.load().fastcnn_cached_memory())


def empty_cache() -> None:
    """Gives the memory that is kept and not in use back to the system, as torch.cuda.empty_cache() does."""
    _library.load().fastcnn_empty_cache()
