"""Whether calling a module would do nothing but its class's forward."""

from __future__ import annotations

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_bare(module: nn.Module) -> bool:
    """Whether a module has neither hooks nor a forward of its own beside its class's."""
    return "forward" not in vars(module) and not any(getattr(module, hooks) for hooks in _HOOKS)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of the kind itself, and calling it would do nothing but the kind's own forward."""
    return type(module) is kind and is_bare(module)
