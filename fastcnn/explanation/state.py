"""What runs of a model change beside their results, kept from it and from torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastcnn._random import RandomState

# What torch.nn.modules.module.register_module_forward_hook and its like fill.
_GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_hooks_with_kwargs,
    torch_module._global_forward_hooks_always_called,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)
_TABLES = ("_parameters", "_buffers", "_modules")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put everything in the model's modules and the random states back to what it was, whatever happens.

    The tensors of the modules' buffers are exchanged for copies meanwhile, so that the model's own do not change at
    all, and the attributes that its forward sets are taken back.
    """
    saved = [(m, dict(vars(m)), {table: dict(vars(m)[table]) for table in _TABLES}) for m in model.modules()]
    copies: dict[int, Tensor] = {}
    drawn = RandomState()
    devices = sorted({p.get_device() for p in model.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices):
            for module, _, tables in saved:
                for name, buffer in tables["_buffers"].items():
                    if buffer is not None:
                        module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
            yield
    finally:
        for module, attributes, tables in saved:
            now = vars(module)
            for name in set(now) - set(attributes):
                del now[name]
            now.update(attributes)
            for table, contents in tables.items():
                now[table].clear()
                now[table].update(contents)
        drawn.restore()


@contextmanager
def without_global_hooks() -> Iterator[None]:
    """Take off the hooks that are called for every module, and put them back."""
    # In the same dicts, as the handles that remove hooks know those.
    saved = [dict(hooks) for hooks in _GLOBAL_HOOKS]
    for hooks in _GLOBAL_HOOKS:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, contents in zip(_GLOBAL_HOOKS, saved, strict=True):
            hooks.clear()
            hooks.update(contents)
