"""Every instruction set that this CPU has, not only the best: the op tests once more in a process for each one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcnn import _library

LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16")
TESTS = "values or gradients or nan or threads or half"


def available() -> str:
    return str(_library.load().fastcnn_cpu_capability_detected().decode())


@pytest.mark.parametrize("level", LEVELS)
def test_ops_on_every_instruction_set(level: str) -> None:
    if LEVELS.index(level) > LEVELS.index(available()):
        pytest.skip(f"this CPU has no {level}")
    if level == _library.load().fastcnn_cpu_capability().decode():
        return  # the suite itself runs on it
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-k", TESTS, "-p", "no:cacheprovider", "ops"],
        cwd=Path(__file__).parent,
        env={**os.environ, "FASTCNN_CPU_CAPABILITY": level},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_capability_is_lowered_never_raised() -> None:
    def capability(asked: str) -> str:
        code = "from fastcnn import _library; print(_library.load().fastcnn_cpu_capability().decode())"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd="/",
            env={**os.environ, "FASTCNN_CPU_CAPABILITY": asked},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert capability("baseline") == "baseline"
    assert capability("amx") == available()


def test_unknown_capability_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import fastcnn"],
        cwd="/",
        env={**os.environ, "FASTCNN_CPU_CAPABILITY": "sse9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "FASTCNN_CPU_CAPABILITY" in done.stderr and "sse9" in done.stderr and "avx2" in done.stderr
