"""Finds torch and nvcc, and has CMake build the libraries for them; how they are built stands in CMakeLists.txt."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "build_backend"))

from fastcnn_build.cuda_toolkit import Cuda, find_cuda  # noqa: E402
from fastcnn_build.torch_environment import PINNED_TORCH, Torch, explain, find_torch, torch_requirement  # noqa: E402


class CMakeBuild(build_ext):
    """Builds the libraries in build/<tag>, which is kept, and installs them into the package."""

    def run(self) -> None:
        """Configure, build and install; write _build_info.json beside them."""
        torch = find_torch()
        if torch is None:
            raise SystemExit(f"fastcnn: no torch in {sys.executable} to build against. Run: pip install {PINNED_TORCH}")
        cuda = find_cuda(torch)
        print(explain(torch), flush=True)
        print(f"fastcnn: CUDA {'on' if cuda.nvcc else 'off'}: {cuda.reason}", flush=True)

        in_place = self.editable_mode or self.inplace
        package = ROOT / "fastcnn" if in_place else Path(self.build_lib).resolve() / "fastcnn"
        build = ROOT / "build" / build_tag(torch, cuda)
        cmake = find_tool("cmake")
        if cmake is None:
            raise SystemExit("fastcnn: cmake is missing; without build isolation, run first: pip install cmake ninja")
        run(cmake, "-S", str(ROOT), "-B", str(build), *cmake_options(torch, cuda))
        run(cmake, "--build", str(build), "--parallel", os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0))))
        # Removed, not overwritten: a process that has a library loaded would crash.
        shutil.rmtree(package / "lib", ignore_errors=True)
        run(cmake, "--install", str(build), "--prefix", str(package))

        info = {
            "fastcnn_version": self.distribution.get_version(),
            "torch_version": torch.version,
            "torch_minor": torch.minor,
            "cuda": cuda.nvcc is not None,
            "cuda_reason": cuda.reason,
            "cuda_arch_list": cuda.arch_list,
            "compiler": (build / "compiler.txt").read_text().strip(),
        }
        (package / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")

    def get_outputs(self) -> list[str]:
        """Name no files: CMake decides what it installs."""
        return []

    def get_output_mapping(self) -> dict[str, str]:
        """Map nothing: in editable mode the files are already in the source folder."""
        return {}


class PlatformWheel(bdist_wheel):
    """Tags the wheel: our libraries use no Python header, so one wheel serves every Python of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag without the interpreter's version."""
        return "py3", "none", super().get_tag()[2]


def build_tag(torch: Torch, cuda: Cuda) -> str:
    """Name the build folder after all that would make CMake start from the beginning."""
    parts = ["torch", torch.version]
    parts += ["cuda"] if cuda.nvcc else []
    parts += ["debug"] if is_debug() else []
    parts += [Path(os.environ["CXX"]).name] if os.environ.get("CXX") else []
    return "-".join(parts)


def cmake_options(torch: Torch, cuda: Cuda) -> list[str]:
    """Turn the findings into the options that CMakeLists.txt names at its head."""
    options = {
        "CMAKE_BUILD_TYPE": "Debug" if is_debug() else "Release",
        "FASTCNN_TORCH_INCLUDE_DIRS": ";".join(torch.include_dirs),
        "FASTCNN_TORCH_LIBRARY_DIR": torch.library_dir,
        "FASTCNN_CXX11_ABI": str(int(torch.cxx11_abi)),
        "FASTCNN_CXX_STANDARD": str(torch.cxx_standard),
        "FASTCNN_NVCC": cuda.nvcc or "",
        "FASTCNN_CUDA_ARCH_FLAGS": ";".join(cuda.arch_flags),
        "FASTCNN_CUDA_INCLUDE_DIRS": ";".join(torch.cuda_include_dirs),
    }
    ninja = find_tool("ninja")
    if ninja:
        options["CMAKE_MAKE_PROGRAM"] = ninja  # its path changes with every isolated build
    return [*(["-G", "Ninja"] if ninja else []), *(f"-D{key}={value}" for key, value in options.items())]


def is_debug() -> bool:
    """Tell whether DEBUG asks for a build without optimisation and with symbols."""
    return os.environ.get("DEBUG", "0").upper() in ("1", "ON", "TRUE", "YES")


def find_tool(name: str) -> str | None:
    """Find a program of this interpreter's environment, which need not be activated, or on PATH."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def run(*command: str) -> None:
    """Run a command whose output goes to the build log."""
    result = subprocess.run(command)
    if result.returncode != 0:
        raise SystemExit(f"fastcnn: {' '.join(command[:2])} failed; its output is above.")


setup(
    install_requires=["numpy", torch_requirement(find_torch())],
    # Without sources: it only tells setuptools that the package is not pure Python.
    ext_modules=[Extension("fastcnn.lib", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
)
