"""The emulated tests once more, under AddressSanitizer and UBSan: in a process that loads their libraries first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import emulated_kernels
import emulation
import pytest

HERE = Path(__file__).parent


def runtime(name: str) -> str:
    """The path of a sanitizer's library, or the bare name where g++ has none."""
    command = [emulation.COMPILER, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(emulation.BUILD != "checked", reason="this is that process")
def test_kernels_pass_the_sanitizers() -> None:
    libraries = [runtime("libasan.so"), runtime("libubsan.so")]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip(f"{emulation.COMPILER} has no AddressSanitizer here")
    environment = os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # of Python itself
        "FASTCNN_EMULATION_BUILD": "address",
    }
    chosen = "not mutant and not capability"  # those compile what the others compile
    command = [sys.executable, "-m", "pytest", "-x", "-rp", "--color=no", "-p", "no:cacheprovider", HERE, "-k", chosen]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.findall(r"^PASSED .*::test_kernels_match_the_oracle\[(\w+)\]$", result.stdout, re.M)
    assert sorted(passed) == emulated_kernels.OPS
