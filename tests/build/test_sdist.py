"""What the source distribution holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

COPIED = ["build_backend", "csrc", "fastcnn", "tests"]


def test_sdist_holds_all_sources_and_nothing_built(checkout: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in checkout.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    for folder in COPIED:
        shutil.copytree(checkout / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "fastcnn" / "lib").mkdir(exist_ok=True)
    (copy / "fastcnn" / "lib" / "libfastcnn.so").touch()
    (copy / "fastcnn" / "_build_info.json").touch()

    script = f"from fastcnn_build import build_sdist; build_sdist({str(tmp_path)!r})"
    variables = {**os.environ, "PYTHONPATH": str(copy / "build_backend")}
    subprocess.run([sys.executable, "-c", script], cwd=copy, env=variables, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}

    suffixes = {".py", ".cpp", ".h", ".cu", ".cuh"}
    sources = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.suffix in suffixes}
    assert sources <= packed
    assert {"CMakeLists.txt", "LICENSE", "README.md", "fastcnn/py.typed", "pyproject.toml"} <= packed
    assert not [name for name in packed if name.endswith((".so", "_build_info.json"))]
