"""Switches for how fastcnn's ops choose their kernels. Each thread has its own; a backward runs under its forward's.

A switch is called, and holds from there on (``backends.winograd(False)``), or is a context manager and holds for a
block (``with backends.winograd(False):``).

Under torch.compile the ops read the switches whenever the compiled function runs, so that a switch set around its call
is in force, and its backward runs under those of its forward. A switch set inside the compiled function is no part of a
graph: it breaks the graph, or with fullgraph=True raises an error that names the switch; torch.export refuses it.
"""

from __future__ import annotations

import os
from types import TracebackType

import torch

from fastcnn import _library


class _Switch:
    """A switch of the calling thread: set from here on by the call, or for a block as a context manager."""

    def __init_subclass__(cls) -> None:
        """Keeps torch.compile from tracing a switch, which would set it when it compiles instead of at each run."""
        reason = cls._reason()
        for name in ("__init__", "__enter__", "__exit__"):
            setattr(cls, name, torch.compiler.disable(getattr(cls, name), reason=reason))

    @classmethod
    def _reason(cls) -> str:
        return f"fastcnn.backends.{cls.__name__} is no part of a graph: set it around the compiled function's call"

    def __init__(self, value: int) -> None:
        self._value = value
        self._previous = self._set(value)

    def __enter__(self) -> None:
        """Sets the switch, which matters where the object is entered a second time."""
        self._set(self._value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts back what the switch was before."""
        self._set(self._previous)

    def _set(self, value: int) -> int:
        """Sets the switch and returns what it was before."""
        if torch.compiler.is_compiling():  # torch.export runs the program to trace it
            raise RuntimeError(self._reason())
        library, name = _library.load(), type(self).__name__.encode()
        previous = int(library.fastcnn_get_switch(name))
        library.fastcnn_set_switch(name, value)
        return previous


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


class winograd(_Flag):  # noqa: N801
    """Sets whether convolutions may use Winograd's algorithm (default True).

    Its sums are exact to about 3 times the direct kernels' rounding error, and one infinity or NaN in the input reaches
    every output of the tiles whose windows hold it. Off, convolutions run on the direct kernels. The switch belongs to
    the calling thread.

    Args:
        enabled: whether convolutions may use it.
    """


class autotune(_Flag):  # noqa: N801
    """Sets whether a convolution's algorithms are measured at the first use of a shape (default False: a rule chooses).

    As torch.backends.cudnn.benchmark. What was fastest is kept for the process, for each shape, pass and number of
    threads, and in the file that the environment variable FASTCNN_AUTOTUNE_CACHE names, if it does, for later ones on
    such a CPU. Two runs may choose differently, and so differ in rounding; torch.use_deterministic_algorithms(True)
    turns it off, and so do batch_invariant and conv2d_algorithm. The switch belongs to the calling thread.

    Args:
        enabled: whether convolutions are measured.
    """


class batch_invariant(_Flag):  # noqa: N801
    """Sets whether an image's result may depend on the batch that it comes in (default False: it may, in rounding).

    On, a convolution's algorithm is chosen by the layer alone, whatever the batch, and torch's own is never chosen.
    The switch belongs to the calling thread.

    Args:
        enabled: whether results must not depend on the batch.
    """


class memory_cache(_Flag):  # noqa: N801
    """Sets whether large blocks of memory are kept when they are freed, for later results (default True).

    A fresh block costs a page fault for each of its pages, which can take longer than the op that fills it. Blocks of
    1 MB and more that ops make (results, gradients, scratch) are kept, and given back where they would raise the peak,
    after 10 seconds unused, or by empty_cache(). Blocks that torch's own ops make stay with torch's allocator. The
    switch belongs to the calling thread.

    Args:
        enabled: whether blocks made from here on are kept when they are freed.
    """


class conv2d_algorithm(_Switch):  # noqa: N801
    """Forces the algorithm of convolutions where it applies (default "automatic", the choice by the rule).

    Args:
        name: "automatic", "direct", "winograd_f4x3", "winograd_f2x3", "winograd_f2x5" or "aten" (torch's own).

    Raises:
        ValueError: there is no algorithm of this name.
    """

    def __init__(self, name: str) -> None:
        """Sets the switch; see the class."""
        super().__init__(_index("conv2d_algorithm", name, _library.load().fastcnn_conv2d_algorithms()))


class cpu_capability(_Switch):  # noqa: N801
    """Sets the widest instruction set whose kernels ops may run (default: the widest that the CPU has).

    It lowers the choice for comparisons and tests, and never raises it: the CPU and the environment variable
    FASTCNN_CPU_CAPABILITY, which holds for the whole process, bound it. Results differ in rounding. Ops of torch take
    no notice, nor does concat, which only copies. The switch belongs to the calling thread.

    Args:
        name: "baseline", "avx2", "avx512" or "avx512_bf16" (whose bfloat16 products AVX-512 alone has not).

    Raises:
        ValueError: there is no capability of this name.
        RuntimeError: the CPU or FASTCNN_CPU_CAPABILITY allows less.
    """

    def __init__(self, name: str) -> None:
        """Sets the switch; see the class."""
        library = _library.load()
        value = _index("cpu_capability", name, library.fastcnn_cpu_capabilities())
        allowed = library.fastcnn_cpu_capability_allowed().decode()
        if value > _index("cpu_capability", allowed, library.fastcnn_cpu_capabilities()):
            raise RuntimeError(
                f"cpu_capability: expected at most {allowed!r}, but got {name!r}: this CPU has "
                f"{library.fastcnn_cpu_capability_detected().decode()!r} and FASTCNN_CPU_CAPABILITY is "
                f"{os.environ.get('FASTCNN_CPU_CAPABILITY', 'not set')}"
            )
        super().__init__(value)


def fallback_enabled() -> bool:
    """Whether torch's own op may run where it is faster or no kernel of fastcnn covers the case, in this thread."""
    return bool(_library.load().fastcnn_get_switch(b"fallback"))


def cached_memory() -> int:
    """Bytes of freed blocks that are kept for later results, of all threads."""
    return int(_library.load().fastcnn_cached_memory())


def empty_cache() -> None:
    """Gives the memory that is kept and not in use back to the system, as torch.cuda.empty_cache() does."""
    _library.load().fastcnn_empty_cache()


def _index(switch: str, name: str, names: bytes) -> int:
    """The place of `name` among the `names`, one a line, that the library gives."""
    known = names.decode().split()
    if name not in known:
        raise ValueError(f"{switch}: expected one of {', '.join(known)}, but got {name!r}")
    return known.index(name)
