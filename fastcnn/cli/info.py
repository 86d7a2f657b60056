"""`fastcnn info`: what is installed, what this machine has, and what runs on it; for bug reports."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

import fastcnn
from fastcnn import _library, backends, ops
from fastcnn._machine import cpu_name, version_of
from fastcnn.cli.console import make_console, make_table, print_plain

CAPABILITY_VARIABLE = "FASTCNN_CPU_CAPABILITY"

# The functions of fastcnn.ops, but those that share all their kernels with another one.
SHARES = {"batch_norm_relu": "batch_norm"}
PUBLIC_OPS = [op for op in ops.__all__ if op not in SHARES and not isinstance(getattr(ops, op), type)]
# Kernels and internal ops that do not begin with the name of their op.
OTHER_NAMES = {"global_avg_pool2d": "adaptive_avg_pool2d", "relu_mask": "conv2d"}


def show_info() -> int:
    """Print the facts and return 0."""
    console = make_console()
    for name, value in {**_environment(), **_library_facts()}.items():
        print_plain(console, f"{name + ':':<22}{value}")
    library = _library.load()
    kernels = by_op(library.fastcnn_kernels().decode().split())
    registered = by_op(registered_ops())
    table = make_table(None, {"op": "left", "CPU": "left", "CUDA": "left", f"kernels ({_capability()})": "left"})
    for op in PUBLIC_OPS:
        has = {key: any(_has_kernel(name, key) for name in registered[op]) for key in ("CPU", "CUDA")}
        own = ", ".join(kernels[op]) or "none of its own"
        table.add_row(op, "yes" if has["CPU"] else "-", "yes" if has["CUDA"] else "-", own)
    console.print(table)
    print_plain(console, f"kernels of several ops: {', '.join(kernels['']) or 'none'}")
    return 0


def registered_ops() -> list[str]:
    """Return the names of all ops in torch.ops.fastcnn: forward, backward and internal ones."""
    registered = torch._C._dispatch_get_all_op_names()
    return sorted({name.removeprefix("fastcnn::").partition(".")[0] for name in registered if "fastcnn::" in name})


def by_op(names: list[str]) -> dict[str, list[str]]:
    """Give each kernel or registered op to the op whose name is its longest beginning; "" has those of no single op."""
    beginnings = {**{op: op for op in PUBLIC_OPS}, **OTHER_NAMES}
    result: dict[str, list[str]] = {op: [] for op in ["", *PUBLIC_OPS]}
    for name in names:
        known = [start for start in beginnings if f"{name.lstrip('_')}_".startswith(f"{start}_")]
        result[beginnings[max(known, key=len)] if known else ""].append(name)
    return result


def _environment() -> dict[str, str]:
    return {
        "fastcnn": f"{fastcnn.__version__} in {Path(_library.__file__).parent}",
        "Python": f"{platform.python_version()}, {platform.platform()}",
        "torch running": torch.__version__,
        "CPU": f"{cpu_name()}, {os.cpu_count()} logical",
        "torch uses": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        **{name: version_of(name) for name in ("numpy", "torchvision", "mlxtend", "matplotlib")},
    }


def _library_facts() -> dict[str, str]:
    library = _library.load()
    info = _library.build_info()
    cap = os.environ.get(CAPABILITY_VARIABLE)
    detected = library.fastcnn_cpu_capability_detected().decode()
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "torch built against": info["torch_version"],
        "compiler": info["compiler"],
        "CPU capability": f"found {detected}, used {_capability()}"
        + (f" ({CAPABILITY_VARIABLE}={cap})" if cap else ""),
        "CUDA library": _library.cuda_missing_reason() or f"built and loaded; torch sees {devices} devices",
        "torch's fallback": "on" if backends.fallback_enabled() else "off",
    }


def _capability() -> str:
    return str(_library.load().fastcnn_cpu_capability().decode())


def _has_kernel(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"fastcnn::{op}", key)
