"""Which torch the build chooses: asked of small environments that hold a torch of a few lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest
import setuptools

FAKE_TORCH = """
__version__ = {version!r}
class version: cuda = {cuda!r}
class __config__:
    @staticmethod
    def show(): return "PyTorch built with:\\n  - C++ Version: 202302\\n"
def compiled_with_cxx11_abi(): return True
"""
FAKE_CPP_EXTENSION = """
def include_paths(): return ["/headers"]
def library_paths(): return ["/libraries"]
def _get_cuda_arch_flags(): return ["-gencode=arch=compute_80,code=sm_80"]
"""
ASK = """
import json
from fastcnn_build import get_requires_for_build_wheel
from fastcnn_build.torch_environment import explain, find_torch, torch_requirement
torch = find_torch()
print(json.dumps({
    "build_requires": get_requires_for_build_wheel(),
    "wheel_requires": torch_requirement(torch),
    "torch": None if torch is None else vars(torch),
    "log": "" if torch is None else explain(torch),
}))
"""


def write_torch(folder: Path, version: str, cuda: str | None = None) -> Path:
    (folder / "torch" / "utils").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(FAKE_TORCH.format(version=version, cuda=cuda))
    (folder / "torch" / "utils" / "__init__.py").touch()
    (folder / "torch" / "utils" / "cpp_extension.py").write_text(FAKE_CPP_EXTENSION)
    return folder / "torch"


@dataclass
class Environment:
    """A virtual environment, and the folder that pip's isolation would put before it on PYTHONPATH."""

    python: Path
    site_packages: Path
    overlay: Path
    backend: Path

    def run(self, script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.overlay), str(self.backend)])
        variables = {**os.environ, "PYTHONPATH": path, "PYTHONNOUSERSITE": "1"}
        return subprocess.run([self.python, "-c", script], env=variables, cwd=cwd, capture_output=True, text=True)

    def ask(self, cwd: Path) -> dict:
        answer = self.run(ASK, cwd)
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)


@pytest.fixture
def environment(tmp_path: Path, checkout: Path) -> Environment:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = tmp_path / "env" / "lib" / version / "site-packages"
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    for pattern in ("setuptools", "_distutils_hack", "setuptools-*.dist-info"):
        for path in Path(setuptools.__file__).parents[1].glob(pattern):
            (overlay / path.name).symlink_to(path)
    return Environment(tmp_path / "env" / "bin" / "python", site_packages, overlay, checkout / "build_backend")


def test_find_torch_of_the_environment_under_isolation(environment: Environment, tmp_path: Path) -> None:
    path = write_torch(environment.site_packages, "2.14.1+cu130", cuda="13.0")
    # pip's isolation takes the environment's packages off sys.path of the build process alone.
    script = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]\n" + ASK
    answer = json.loads(environment.run(script, tmp_path).stdout)
    assert answer["build_requires"] == []
    assert answer["wheel_requires"] == "torch==2.14.*"
    assert answer["torch"]["path"] == str(path)
    assert answer["torch"]["cuda"] == "13.0"
    assert answer["torch"]["cxx_standard"] == 23
    assert answer["log"] == (
        f"fastcnn: building against torch 2.14.1+cu130 in {path}, the one installed in this environment."
    )


def test_find_torch_names_no_build_isolation_where_the_build_sees_it(environment: Environment, tmp_path: Path) -> None:
    path = write_torch(environment.site_packages, "2.13.2")
    answer = environment.ask(tmp_path)
    assert answer["wheel_requires"] == "torch==2.13.*"
    assert f"torch 2.13.2 in {path}" in answer["log"]
    assert "--no-build-isolation" in answer["log"]


def test_find_torch_pins_one_version_without_torch(environment: Environment, tmp_path: Path) -> None:
    answer = environment.ask(tmp_path)
    assert answer["torch"] is None
    assert answer["build_requires"] == [answer["wheel_requires"]] == ["torch==2.13.0"]


def test_find_torch_keeps_the_pin_once_the_requirement_is_installed(environment: Environment, tmp_path: Path) -> None:
    write_torch(environment.overlay, "2.13.0+cpu")
    answer = environment.ask(tmp_path)
    assert answer["wheel_requires"] == "torch==2.13.0"
    assert "a build requirement" in answer["log"]


def test_find_torch_prefers_the_environment_to_the_overlay(environment: Environment, tmp_path: Path) -> None:
    write_torch(environment.overlay, "2.13.0")
    write_torch(environment.site_packages, "2.15.0")
    assert environment.ask(tmp_path)["torch"]["version"] == "2.15.0"


def test_find_torch_ignores_a_folder_of_that_name(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    write_torch(tmp_path / "sources", "2.13.0")
    assert environment.ask(tmp_path / "sources")["torch"] is None


def test_find_torch_refuses_an_old_torch(environment: Environment, tmp_path: Path) -> None:
    write_torch(environment.site_packages, "2.9.1")
    answer = environment.run(ASK, tmp_path)
    assert answer.returncode != 0
    assert "expected torch 2.13 or newer, but found 2.9.1" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_find_torch_shows_why_a_torch_cannot_be_imported(environment: Environment, tmp_path: Path) -> None:
    path = write_torch(environment.site_packages, "2.13.0")
    (path / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    answer = environment.run(ASK, tmp_path)
    assert answer.returncode != 0
    assert "libcudart.so.13: cannot open shared object file" in answer.stderr
