"""The errors that data loading reports to a person: what is missing, and what to do about it."""

from __future__ import annotations

import importlib
from types import ModuleType

from fastcnn._torchvision import import_torchvision


class DataError(RuntimeError):
    """A data file is missing, truncated, or not what its name says."""


class MissingExtraError(ImportError):
    """An optional package is not installed; the message names the command that installs it."""


def require(module: str, purpose: str, install: str) -> ModuleType:
    """Import an optional module, or raise MissingExtraError: `purpose` needs it, `pip install <install>` brings it."""
    package = module.partition(".")[0]
    try:
        if package == "torchvision":
            import_torchvision()
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # a torchvision for another torch may raise either
        message = f"{purpose} needs {package} ({error}): pip install {install}"
        raise MissingExtraError(message) from error
