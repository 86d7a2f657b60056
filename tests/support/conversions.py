"""What a conversion must leave as it was, and what its way back restores."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fastcnn


def state_of(model: nn.Module) -> list[Any]:
    """What a conversion may not exchange: objects, flags, hooks, and where they are."""
    tensors = [(key, id(tensor), tensor.requires_grad) for key, tensor in model.state_dict(keep_vars=True).items()]
    return [tensors, [(name, id(module), module.training) for name, module in model.named_modules()]]


def trace_of(model: nn.Module) -> list[Any]:
    """What reverting has to restore: classes, attributes and the layout of parameters."""
    modules = [(type(module), list(vars(module))) for module in model.modules()]
    return [modules, [parameter.stride() for parameter in model.parameters()]]


def check_structure(model: nn.Module) -> int:
    """Converts and reverts, and returns how many modules the conversion changed."""
    state, before = state_of(model), trace_of(model)
    values = {key: (tensor, tensor.clone()) for key, tensor in model.state_dict().items()}
    assert fastcnn.convert(model) is model
    assert state_of(model) == state
    for tensor, value in values.values():
        assert tensor.device.type == "meta" or torch.equal(tensor, value)
    once = trace_of(model)
    converted = sum("_fastcnn" in vars(module) for module in model.modules())
    fastcnn.convert(model)
    assert trace_of(model) == once
    assert fastcnn.revert(model) is model
    assert state_of(model) == state
    assert trace_of(model) == before
    return converted
