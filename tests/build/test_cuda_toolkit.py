"""When the CUDA library is built, and what is said where it is not."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ARCH_FLAGS = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_120,code=compute_120"]


@pytest.fixture
def toolkit(build_backend: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from fastcnn_build import cuda_toolkit

    for name in ("FASTCNN_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(cuda_toolkit, "USUAL_NVCC", str(tmp_path / "usual" / "nvcc"))
    return cuda_toolkit


def torch_with(cuda: str | None) -> Any:
    from fastcnn_build.torch_environment import Torch

    return Torch("2.14.1", "/torch", cuda, [], "", True, 20, [], "", ARCH_FLAGS, from_requirement=False)


def write_nvcc(folder: Path, version: str) -> str:
    folder.mkdir(parents=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && echo "Cuda compilation tools, release {version}, V{version}.88"\n'
        '[ "$1" = --list-gpu-arch ] && echo compute_80\n'
        "exit 0\n"
    )
    nvcc.chmod(0o755)
    return str(nvcc)


def test_find_cuda_without_cuda_torch(toolkit: ModuleType) -> None:
    cuda = toolkit.find_cuda(torch_with(None))
    assert cuda.nvcc is None
    assert cuda.reason == "torch 2.14.1 is built without CUDA"


def test_find_cuda_matching_nvcc_on_path(toolkit: ModuleType, tmp_path: Path) -> None:
    nvcc = write_nvcc(tmp_path / "path", "13.0")
    cuda = toolkit.find_cuda(torch_with("13.2"))
    assert cuda.nvcc == nvcc
    assert cuda.arch_list == "sm_80"  # this nvcc does not know compute_120


def test_find_cuda_keeps_the_users_arch_list(
    toolkit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nvcc(tmp_path / "path", "13.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 12.0+PTX")
    assert toolkit.find_cuda(torch_with("13.0")).arch_list == "sm_80 compute_120"


def test_find_cuda_passes_over_another_major_version(toolkit: ModuleType, tmp_path: Path) -> None:
    write_nvcc(tmp_path / "path", "12.4")
    usual = write_nvcc(tmp_path / "usual", "13.0")
    assert toolkit.find_cuda(torch_with("13.0")).nvcc == usual


def test_find_cuda_without_matching_nvcc_says_where_it_looked(toolkit: ModuleType, tmp_path: Path) -> None:
    on_path = write_nvcc(tmp_path / "path", "12.4")
    cuda = toolkit.find_cuda(torch_with("13.0"))
    assert cuda.nvcc is None
    assert cuda.reason == (
        "no nvcc of CUDA 13.x, which torch 2.14.1 needs, was found (looked for "
        f"nvcc on PATH, {on_path}: CUDA 12.4; {tmp_path}/usual/nvcc: none)"
    )


def test_find_cuda_takes_cuda_home_alone(toolkit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nvcc(tmp_path / "path", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert toolkit.find_cuda(torch_with("13.0")).nvcc is None
    nvcc = write_nvcc(tmp_path / "home" / "bin", "13.1")
    assert toolkit.find_cuda(torch_with("13.0")).nvcc == nvcc


def test_find_cuda_switched_off(toolkit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nvcc(tmp_path / "path", "13.0")
    monkeypatch.setenv("FASTCNN_CUDA", "0")
    cuda = toolkit.find_cuda(torch_with("13.0"))
    assert (cuda.nvcc, cuda.reason) == (None, "FASTCNN_CUDA=0 at build time")


@pytest.mark.parametrize(("cuda", "reason"), [(None, "built without CUDA"), ("13.0", "nvcc on PATH: none")])
def test_find_cuda_forced_without_means_raises(
    toolkit: ModuleType, monkeypatch: pytest.MonkeyPatch, cuda: str | None, reason: str
) -> None:
    monkeypatch.setenv("FASTCNN_CUDA", "1")
    with pytest.raises(SystemExit, match=f"FASTCNN_CUDA=1, but .*{reason}"):
        toolkit.find_cuda(torch_with(cuda))


def test_find_cuda_refuses_other_values(toolkit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CUDA", "yes")
    with pytest.raises(SystemExit, match="expected FASTCNN_CUDA to be 0 or 1, but got 'yes'"):
        toolkit.find_cuda(torch_with("13.0"))
