"""PEP 517 backend: setuptools, plus the question which torch to build against.

pip builds in an environment of its own that lacks the user's torch. Its interpreter is the user's, though, and can be
asked; only where that knows no torch does a fixed version become a build requirement, and the wheel's as well.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import setuptools
from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from fastcnn_build.torch_environment import PINNED_TORCH, find_torch

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ConfigSettings = dict[str, Any] | None

if (
    int(setuptools.__version__.split(".")[0]) < 77
):  # only without build isolation, where nobody installs what we require
    raise SystemExit(
        f"fastcnn: expected setuptools 77 or newer, but found {setuptools.__version__}. Without build isolation, run "
        "first: pip install 'setuptools>=77' cmake ninja"
    )


def get_requires_for_build_sdist(config_settings: ConfigSettings = None) -> list[str]:
    """Ask for nothing: packing the sources needs no torch."""
    return []


def get_requires_for_build_wheel(config_settings: ConfigSettings = None) -> list[str]:
    """Ask for the pinned torch if the interpreter that runs this has none."""
    return [PINNED_TORCH] if find_torch() is None else []


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(
    wheel_directory: str, config_settings: ConfigSettings = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel."""
    _remove_staging()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: ConfigSettings = None, metadata_directory: str | None = None
) -> str:
    """Build an editable wheel; the libraries go into the source folder."""
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def _remove_staging() -> None:
    # setuptools packs whatever lies in build/lib*, modules deleted since the last build included.
    for staging in Path("build").glob("lib*"):
        shutil.rmtree(staging)
