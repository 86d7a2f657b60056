"""Whether the CUDA library is built, with which nvcc and for which GPUs; and if not, why not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fastcnn_build.torch_environment import Torch

USUAL_NVCC = "/usr/local/cuda/bin/nvcc"


@dataclass(frozen=True)
class Cuda:
    """The decision on the CUDA library; nvcc is None where it is not built."""

    reason: str
    nvcc: str | None = None
    arch_flags: tuple[str, ...] = ()

    @property
    def arch_list(self) -> str:
        """What the fat binary holds, such as `sm_80 compute_80`."""
        return " ".join(flag.rpartition("code=")[2] for flag in self.arch_flags)


def find_cuda(torch: Torch) -> Cuda:
    """Decide by FASTCNN_CUDA, torch's own CUDA version and the nvcc found; raise if FASTCNN_CUDA=1 cannot be met."""
    wish = os.environ.get("FASTCNN_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"fastcnn: expected FASTCNN_CUDA to be 0 or 1, but got {wish!r}")
    if wish == "0":
        return Cuda("FASTCNN_CUDA=0 at build time")
    if torch.cuda is None:
        cuda = Cuda(f"torch {torch.version} is built without CUDA")
    else:
        cuda = _find_matching_nvcc(torch, torch.cuda)
    if wish == "1" and cuda.nvcc is None:
        raise SystemExit(f"fastcnn: FASTCNN_CUDA=1, but {cuda.reason}")
    return cuda


def _find_matching_nvcc(torch: Torch, torch_cuda: str) -> Cuda:
    looked = []
    for place, path in _places():
        version = _nvcc_version(path) if path else None
        if path and version and version.split(".")[0] == torch_cuda.split(".")[0]:
            return Cuda(f"nvcc {version} ({path})", path, _arch_flags(torch, path))
        looked.append(f"{place}: {f'CUDA {version}' if version else 'none'}")
    wanted = f"no nvcc of CUDA {torch_cuda.split('.')[0]}.x, which torch {torch.version} needs, was found"
    return Cuda(f"{wanted} (looked for {'; '.join(looked)})")


def _places() -> list[tuple[str, str | None]]:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(name):  # the user's word: nowhere else
            return [(f"{name}={home}, {home}/bin/nvcc", f"{home}/bin/nvcc")]
    on_path = shutil.which("nvcc")
    return [(f"nvcc on PATH, {on_path}" if on_path else "nvcc on PATH", on_path), (USUAL_NVCC, USUAL_NVCC)]


def _nvcc_version(path: str) -> str | None:
    if not Path(path).is_file():
        return None
    answer = subprocess.run([path, "--version"], capture_output=True, text=True)
    found = re.search(r"release (\d+\.\d+)", answer.stdout)
    return found.group(1) if found else None


def _arch_flags(torch: Torch, nvcc: str) -> tuple[str, ...]:
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return tuple(torch.cuda_arch_flags)
    # Of our default list, an older nvcc may not know the newest GPUs.
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    return tuple(flag for flag in torch.cuda_arch_flags if flag.split(",")[0].rpartition("=")[2] in known)
