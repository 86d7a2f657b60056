"""When torch's own op has to run: what the dispatcher below cannot see or our kernels cannot follow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastcnn import backends

_PLAIN = (Tensor, torch.nn.Parameter)
# Subclasses that trace a program and so must see our ops: FakeTensor, FunctionalTensor and the like.
_TRACERS = ("torch._subclasses.", "torch.fx.")


def use_torch(op: str, *tensors: Tensor | None) -> bool:
    """Returns whether `op` has to run as torch's own: torch.func, forward-mode AD, tensor subclasses, complex dtypes.

    Raises:
        NotImplementedError: it has to, and fastcnn.backends.fallback is off.
    """
    why = reason(*tensors)
    if why is None:
        return False
    if not backends.fallback_enabled():
        raise NotImplementedError(
            f"fastcnn::{op}: no kernel of fastcnn covers {why}, and fastcnn.backends.fallback is off, so that "
            "torch's own op may not run instead"
        )
    return True


def reason(*tensors: Tensor | None) -> str | None:
    """Returns what makes torch's own op necessary, in a few words; None for nothing."""
    if torch.compiler.is_compiling():
        return None
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms"
    if forward_ad._current_level >= 0 and any(_has_tangent(t) for t in tensors):
        return "forward-mode AD"
    for t in tensors:
        if t is None:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"fastcnn: expected Tensor, but got {type(t).__name__}")
        if t.is_complex():
            return f"{t.dtype}"
        if type(t) not in _PLAIN and not type(t).__module__.startswith(_TRACERS):
            return f"the tensor subclass {type(t).__name__}"
    return None


def _has_tangent(t: Tensor | None) -> bool:
    return t is not None and forward_ad.unpack_dual(t).tangent is not None
