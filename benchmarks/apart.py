"""Measurements in a process of their own, the memory of one, and torch.compile's files apart from the user's."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path


def run_apart(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script of this folder, and keeps what it prints."""
    # The script finds its neighbours in its own folder, which a safe path leaves out.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=environment)


def own_compiler_cache() -> AbstractContextManager[None]:
    """torch.compile's files in a folder that goes with the context, for processes started in it too.

    The user's own may hold code for another ATEN_CPU_CAPABILITY, which crashes.
    """
    from torch._inductor.utils import fresh_cache

    return fresh_cache()


def keep_freed_memory() -> None:
    """Has the C library keep what this process frees, where it can be told so (glibc).

    By default it gives large tensors back to the system at each free and fetches new pages for the next ones, which
    takes up to a third of eager inference; how often depends on what else the process has allocated before.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def resident_bytes() -> int:
    """The largest resident memory of this process so far; getrusage's counts what its parent had, too."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
