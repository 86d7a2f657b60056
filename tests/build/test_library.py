"""Loading the compiled libraries: what is said where that fails, and what is in the process where it does not."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastcnn import _library

INSTALLED = Path(_library.__file__).parent


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder as the package's, in which a test may break things; the real library is linked, not copied."""
    (tmp_path / "lib").mkdir()
    for name in ("_library.py", "_build_info.json"):
        shutil.copy(INSTALLED / name, tmp_path / name)
    (tmp_path / "lib" / "libfastcnn.so").symlink_to(INSTALLED / "lib" / "libfastcnn.so")
    return tmp_path


def import_library(package: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("library_of_another_package", package / "_library.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def change_build_info(package: Path, **fields: Any) -> None:
    path = package / "_build_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_build_info_fields() -> None:
    info = _library.build_info()
    assert list(info) == [
        "fastcnn_version",
        "torch_version",
        "torch_minor",
        "cuda",
        "cuda_reason",
        "cuda_arch_list",
        "compiler",
    ]
    assert torch.__version__.startswith(info["torch_minor"])
    assert info["cuda_reason"]
    assert info["compiler"]


def test_load_refuses_another_torch_before_loading(package: Path) -> None:
    change_build_info(package, torch_version="2.99.1+cpu", torch_minor="2.99")
    (package / "lib" / "libfastcnn.so").unlink()  # not even looked at
    with pytest.raises(ImportError) as error:
        import_library(package).load()
    message = str(error.value)
    assert "built for another torch" in message
    assert "built for: torch 2.99.1+cpu" in message
    assert f"running:   torch {torch.__version__}" in message
    assert "pip install --force-reinstall --no-deps ." in message


def test_load_names_a_missing_library(package: Path) -> None:
    library = package / "lib" / "libfastcnn.so"
    library.unlink()
    with pytest.raises(ImportError, match=f"{library} is missing(.|\n)*pip install --force-reinstall"):
        import_library(package).load()


def test_load_shows_the_loaders_words(package: Path) -> None:
    library = package / "lib" / "libfastcnn.so"
    library.unlink()
    library.write_text("no library")
    with pytest.raises(ImportError, match=r"(file too short|invalid ELF header)(.|\n)*running:   torch"):
        import_library(package).load()


def test_load_in_unbuilt_sources_says_how_to_build(package: Path) -> None:
    (package / "_build_info.json").unlink()
    with pytest.raises(ImportError, match=r"has no compiled library.*pip install -e \."):
        import_library(package).load()


def test_cuda_missing_reason_without_cuda_build(package: Path) -> None:
    change_build_info(package, cuda=False, cuda_reason="no nvcc was found")
    assert import_library(package).cuda_missing_reason() == "not built: no nvcc was found"


def test_cuda_missing_reason_where_it_cannot_be_loaded(package: Path) -> None:
    change_build_info(package, cuda=True)
    library = import_library(package)
    assert library.load().fastcnn_cpu_capability()  # the CPU library works all the same
    assert "libfastcnn_cuda.so" in library.cuda_missing_reason()


def test_concat_has_a_cuda_kernel_where_the_cuda_library_is_loaded() -> None:
    registered = torch._C._dispatch_has_kernel_for_dispatch_key("fastcnn::concat", "CUDA")
    assert registered == (_library.cuda_missing_reason() is None)


def test_library_brings_no_second_openmp_and_no_search_path() -> None:
    script = (
        "import torch, fastcnn\n"
        "fastcnn.ops.conv2d(torch.ones(2, 8, 64, 64), torch.ones(8, 8, 3, 3))\n"
        "names = {line.split()[-1].rpartition('/')[2] for line in open('/proc/self/maps')}\n"
        "print(*sorted(name for name in names if name.startswith(('libgomp', 'libomp', 'libiomp'))))\n"
    )
    loaded = run(sys.executable, "-c", script)
    assert len(loaded.split()) == 1
    dynamic = run("readelf", "-d", str(INSTALLED / "lib" / "libfastcnn.so"))
    assert "libtorch_cpu.so" in dynamic
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    assert "libpython" not in dynamic


def run(*command: str) -> str:
    # From the folder that holds the package, so that it is this very one.
    return subprocess.run(command, cwd=INSTALLED.parent, capture_output=True, text=True, check=True).stdout
