"""Which torch to build against, and what the wheel then requires."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastcnn_build import describe_torch

PINNED_TORCH = "torch==2.13.0"  # built against, and required, where there is no torch yet
OLDEST_TORCH = (2, 13)


@dataclass(frozen=True)
class Torch:
    """A torch to build against; the fields that describe_torch prints, and whose it is."""

    version: str
    path: str
    cuda: str | None
    include_dirs: list[str]
    library_dir: str
    cxx11_abi: bool
    cxx_standard: int
    cuda_include_dirs: list[str]
    cuda_arch_list: str
    cuda_arch_flags: list[str]
    from_requirement: bool  # brought by PINNED_TORCH, not found in the interpreter's own environment

    @property
    def minor(self) -> str:
        """Major and minor version, within which torch keeps its binary interface."""
        return ".".join(self.version.split(".")[:2])


@cache
def find_torch() -> Torch | None:
    """Find the torch of this interpreter's own environment, or else the one among the build requirements."""
    own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    return _ask(own, from_requirement=False) or _ask(os.environ, from_requirement=True)


def torch_requirement(torch: Torch | None) -> str:
    """Return what the wheel requires: the torch minor it is built with, or the pinned version where that decides."""
    if torch is None or (torch.from_requirement and torch.version.split("+")[0] == PINNED_TORCH.split("==")[1]):
        return PINNED_TORCH
    return f"torch=={torch.minor}.*"


def explain(torch: Torch) -> str:
    """Return the build log's sentence on which torch is used and how to choose another."""
    sentence = f"fastcnn: building against torch {torch.version} in {torch.path}"
    if torch.from_requirement:
        return f"{sentence}, a build requirement, as {sys.executable} has no torch of its own."
    if importlib.util.find_spec("torch") is None:  # isolated by pip, whose interpreter is that of the target
        return f"{sentence}, the one installed in this environment."
    return (
        f"{sentence}.\nfastcnn: uv and python -m build use an environment of their own, which cannot see the torch "
        "in yours; to build against that one, use --no-build-isolation."
    )


def _ask(environment: Mapping[str, str], from_requirement: bool) -> Torch | None:
    # Not in the source folder: a folder named torch there would answer.
    command = [sys.executable, describe_torch.__file__]
    answer = subprocess.run(command, env=environment, cwd=Path(sys.prefix), capture_output=True, text=True)
    if answer.returncode == describe_torch.NO_TORCH:
        return None
    if answer.returncode != 0:
        raise SystemExit(f"fastcnn: {sys.executable} has a torch that cannot be used:\n{answer.stderr}")
    torch = Torch(**json.loads(answer.stdout.splitlines()[-1]), from_requirement=from_requirement)
    if tuple(int(part) for part in torch.minor.split(".")) < OLDEST_TORCH:
        raise SystemExit(
            f"fastcnn: expected torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer, but found {torch.version} in "
            f"{torch.path}. Update it with: pip install --upgrade torch"
        )
    return torch
