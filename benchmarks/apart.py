"""Measurements in a process of their own, and the memory of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_apart(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script of this folder, and keeps what it prints."""
    # The script finds its neighbours in its own folder, which a safe path leaves out.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=environment)


def resident_bytes() -> int:
    """The largest resident memory of this process so far; getrusage's counts what its parent had, too."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
