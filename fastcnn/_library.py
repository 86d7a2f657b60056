"""Loads the compiled libraries, and says what to do where they cannot be loaded.

libfastcnn.so registers the ops and holds plain C functions for all that is no op; libfastcnn_cuda.so adds the CUDA
kernels where it was built and loads.
"""

from __future__ import annotations

import ctypes
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).parent
_LIBRARY = _PACKAGE / "lib" / "libfastcnn.so"
_CUDA_LIBRARY = _PACKAGE / "lib" / "libfastcnn_cuda.so"
_BUILD_INFO = _PACKAGE / "_build_info.json"

_CAPABILITIES = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")

# The functions of csrc/c_api.cpp: name, result, arguments.
_SIGNATURES: list[tuple[str, Any, list[Any]]] = [
    ("fastcnn_cpu_capability", ctypes.c_char_p, []),
    ("fastcnn_cpu_capability_detected", ctypes.c_char_p, []),
    ("fastcnn_cpu_capability_allowed", ctypes.c_char_p, []),
    ("fastcnn_kernels", ctypes.c_char_p, []),
    ("fastcnn_switches", ctypes.c_char_p, []),
    ("fastcnn_conv2d_algorithms", ctypes.c_char_p, []),
    ("fastcnn_cpu_capabilities", ctypes.c_char_p, []),
    ("fastcnn_get_switch", ctypes.c_int, [ctypes.c_char_p]),
    ("fastcnn_set_switch", None, [ctypes.c_char_p, ctypes.c_int]),
    ("fastcnn_conv2d_applies", ctypes.c_int, [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]),
    ("fastcnn_conv2d_counts", None, [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]),
    ("fastcnn_conv2d_choice", ctypes.c_int, [ctypes.c_int, ctypes.c_void_p]),
    ("fastcnn_cached_memory", ctypes.c_int64, []),
    ("fastcnn_empty_cache", None, []),
    ("fastcnn_fma_gflops", ctypes.c_double, []),
    ("fastcnn_record_kernels", None, [ctypes.c_int]),
    ("fastcnn_recorded_kernels", ctypes.c_char_p, []),
]


@cache
def load() -> ctypes.CDLL:
    """Load the libraries once and return the handle to the C functions.

    Raises:
        ImportError: the library is missing, was built for another torch, or cannot be loaded; or
            FASTCNN_CPU_CAPABILITY names no capability.
    """
    capability = os.environ.get("FASTCNN_CPU_CAPABILITY", "baseline")
    if capability not in _CAPABILITIES:
        raise ImportError(
            f"FASTCNN_CPU_CAPABILITY={capability!r} names no CPU capability; expected {', '.join(_CAPABILITIES)}"
        )
    info = build_info()
    running = torch.__version__
    if running.split(".")[:2] != info["torch_minor"].split("."):
        raise ImportError(_message("it was built for another torch, and loading it would crash"))
    if not _LIBRARY.is_file():
        raise ImportError(_message(f"{_LIBRARY} is missing"))
    try:
        torch.ops.load_library(_LIBRARY)
    except OSError as error:
        raise ImportError(_message(str(error.__cause__ or error))) from error
    handle = ctypes.CDLL(str(_LIBRARY))
    for name, result, arguments in _SIGNATURES:
        function = getattr(handle, name)
        function.restype, function.argtypes = result, arguments
    cuda_missing_reason()
    return handle


def plan(values: list[list[int]], steps: list[list[int]], constants: list[torch.Tensor], arena: int) -> Any:
    """What runs a plan of fastcnn.compilation.spec: run(list of inputs), and describe(), a line a step.

    Raises:
        RuntimeError: the plan is not well formed.
    """
    return torch.classes.fastcnn.Plan(values, steps, constants, arena)


def program(
    *,
    inputs: list[tuple[str, list[int], torch.dtype]],
    batch: int,
    slots: int,
    records: list[list[int]],
    plans: list[Any],
    texts: list[str],
    numbers: list[float],
    constants: list[torch.Tensor],
    outputs: list[int],
) -> Any:
    """What runs a whole program: see csrc/plan/program.h.

    Raises:
        RuntimeError: the program is not well formed.
    """
    arguments = (inputs, batch, slots, records, plans, texts, numbers, constants, outputs)
    return torch.classes.fastcnn.Program(*arguments)


@cache
def cuda_missing_reason() -> str | None:
    """Load the CUDA library; return None where it is loaded, otherwise why it is not."""
    if not build_info()["cuda"]:
        return f"not built: {build_info()['cuda_reason']}"
    try:
        torch.ops.load_library(_CUDA_LIBRARY)
    except OSError as error:
        return f"built, but cannot be loaded: {error.__cause__ or error}"
    return None


@cache
def build_info() -> dict[str, Any]:
    """Return what the build wrote down: versions, compiler, CUDA.

    Raises:
        ImportError: this copy of the package was not built.
    """
    try:
        info: dict[str, Any] = json.loads(_BUILD_INFO.read_text())
    except FileNotFoundError:
        raise ImportError(
            f"fastcnn in {_PACKAGE} has no compiled library. If this is the source folder, either leave it to use an "
            "installed fastcnn, or build in it with: pip install -e ."
        ) from None
    return info


def _message(what: str) -> str:
    return (
        f"fastcnn cannot load its library: {what}.\n"
        f"  built for: torch {build_info()['torch_version']}\n"
        f"  running:   torch {torch.__version__}\n"
        "Build it again for this torch, in the folder of fastcnn's sources:\n"
        "  pip install --force-reinstall --no-deps ."
    )
