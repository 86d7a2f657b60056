"""Which kernels ran, and why those: the switches and the rule in words."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastcnn import _library, backends
from fastcnn.ops import _torch

_COVERED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ATEN = "aten"  # what the record calls torch's own kernels


def recorded(call: Callable[[], Any]) -> list[str]:
    """Return the names of the kernels that `call` ran, in order."""
    library = _library.load()
    library.fastcnn_record_kernels(1)
    try:
        call()
    finally:
        library.fastcnn_record_kernels(0)
    return str(library.fastcnn_recorded_kernels().decode()).split()


def not_covered(*tensors: Tensor | None) -> str | None:
    """Return what keeps our kernels from these tensors, in a few words; None where they run."""
    why = _torch.reason(*tensors)
    for t in tensors:
        if t is not None and why is None:
            covered = t.device.type == "cpu" or (t.is_cuda and _library.cuda_missing_reason() is None)
            why = None if covered else f"a {t.device.type} tensor"
            why = why or (None if t.dtype in _COVERED else str(t.dtype))
    return why


def why(kind: str, kernels: list[str], tensors: tuple[Tensor | None, ...], geometry: list[int] | None) -> str:
    """Say in words why a layer's forward ran `kernels`.

    Args:
        kind: the layer's.
        kernels: as recorded.
        tensors: the layer's inputs and parameters.
        geometry: a convolution's, in the order of the library's Conv2dGeometry.
    """
    missing = not_covered(*tensors)
    if missing is not None:
        return f"not covered: {missing}"
    if not kernels:
        return "nothing to compute"
    if any(t is not None and t.is_cuda for t in tensors):
        return "not covered by our kernels" if ATEN in kernels else "our kernel for GPUs"
    if geometry is not None:
        dtypes = {t.dtype for t in tensors if t is not None}
        return _why_conv2d(kernels[0], dtypes.pop() if len(dtypes) == 1 else torch.float32, geometry)
    if ATEN in kernels:
        return "not covered by our kernels"
    if kind == "BatchNormReLU2d":
        return "fused: batch norm, residual if any, and ReLU in one pass"
    return "fused: keeps nothing but its output" if kind == "DenseBlock" else "our kernel, whatever the size"


def _why_conv2d(kernel: str, dtype: torch.dtype, geometry: list[int]) -> str:
    algorithms = _names("fastcnn_conv2d_algorithms")
    forced = algorithms[_switch("conv2d_algorithm")]
    depthwise = geometry[-1] > 1 and geometry[-1] == geometry[1] == geometry[4]
    if forced != "automatic":
        applies = _applies(algorithms.index(forced), geometry)
        return f"forced: conv2d_algorithm({forced!r})" + ("" if applies else ", which does not apply here")
    if dtype == torch.float64:
        return "float64 has direct kernels only"
    if depthwise:
        large = "torch's own is faster by the rule: depthwise and large"
        return large if kernel == ATEN else "depthwise: a kernel of its own"
    if _switch("autotune") and not _switch("batch_invariant") and not torch.are_deterministic_algorithms_enabled():
        return "autotuned: torch's own was fastest" if kernel == ATEN else "autotuned: was fastest"
    if kernel == ATEN:
        with backends.fallback(False):
            ours = algorithms[_library.load().fastcnn_conv2d_choice(0, _array(geometry))]
        return f"torch's own is faster by the rule; of ours {ours}"
    winograd = any(_applies(i, geometry) for i, name in enumerate(algorithms) if name.startswith("winograd"))
    rivals = ["direct"] if kernel.startswith("winograd") else ["Winograd"] if winograd and _switch("winograd") else []
    if _switch("fallback") and not _switch("batch_invariant"):
        rivals.append("torch's own")
    chosen = f"fastest by the rule, before {' and '.join(rivals)}" if rivals else "the only kernel allowed here"
    return chosen + _restrictions()


def _restrictions() -> str:
    off = [f"{name}(False)" for name in ("winograd", "fallback") if not _switch(name)]
    on = ["batch_invariant(True)"] if _switch("batch_invariant") else []
    return f", under {', '.join(off + on)}" if off or on else ""


def _array(geometry: list[int]) -> Any:
    return (ctypes.c_int64 * len(geometry))(*geometry)


def _applies(algorithm: int, geometry: list[int]) -> bool:
    return bool(_library.load().fastcnn_conv2d_applies(0, algorithm, _array(geometry)))


def _names(function: str) -> list[str]:
    return list(getattr(_library.load(), function)().decode().split())


def _switch(name: str) -> int:
    return int(_library.load().fastcnn_get_switch(name.encode()))
