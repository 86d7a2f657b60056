"""What a conversion must leave as it was, and what its way back restores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastcnn
from fastcnn.conversion import fused


def state_of(model: nn.Module) -> list[Any]:
    """What a conversion may not exchange: objects, flags, hooks, and where they are."""
    tensors = [(key, id(tensor), tensor.requires_grad) for key, tensor in model.state_dict(keep_vars=True).items()]
    hooks = [[(table, list(held)) for table, held in vars(m).items() if "_hooks" in table] for m in model.modules()]
    return [tensors, hooks, [(name, id(module), module.training) for name, module in model.named_modules()]]


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
    check_values(values)
    once = trace_of(model)
    converted = sum("_fastcnn" in vars(module) for module in model.modules())
    fastcnn.convert(model)
    assert trace_of(model) == once
    assert fastcnn.revert(model) is model
    assert state_of(model) == state
    assert trace_of(model) == before
    check_values(values)
    return converted


def check_values(values: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """By key of the state_dict: a tensor holds what it held, where it holds anything."""
    for key, (tensor, value) in values.items():
        assert tensor.device.type == "meta" or torch.equal(tensor, value), key


def calls_of_fused_op(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> int:
    """How often batch norm and ReLU run as one op in what is run."""
    calls = []
    original = fused.ops.batch_norm_relu
    with monkeypatch.context() as patch:
        patch.setattr(fused.ops, "batch_norm_relu", lambda *a: calls.append(1) or original(*a))
        run()
    return len(calls)
