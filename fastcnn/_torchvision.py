"""torchvision, also where its compiled ops do not load."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch


def import_torchvision() -> ModuleType:
    """Import torchvision; call it before timm is imported, which imports torchvision.

    torchvision gives its ops fake kernels as it is imported. A build of it for another build of torch, as its releases
    are beside torch's CPU build, cannot load the library that declares the ops themselves, and its import fails for
    that; its classification models use none of the ops, so that declaring them is enough.

    Raises:
        ImportError: torchvision is not installed, or its import fails.
        RuntimeError: its import fails.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        _declare_ops()
        return importlib.import_module("torchvision")


@cache
def _declare_ops() -> torch.library.Library:
    """Declare the ops that torchvision gives fake kernels; they stay declared as long as the result is kept."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
