"""convert and revert."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastcnn.conversion import layers
from fastcnn.conversion.plan import plan


def convert(model: nn.Module, example: Any = None) -> nn.Module:
    """TODO."""
    decided = plan(model)
    modules = dict(model.named_modules())
    for name, cls in decided.classes.items():
        layers.change(modules[name], cls, decided.recipes.get(name))
    wrapped = any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules())
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not wrapped:
            layers.to_channels_last(module)
    return model


def revert(model: nn.Module) -> nn.Module:
    """TODO."""
    for module in model.modules():
        layers.undo(module)
    return model
