"""`fastcnn info`: what is installed, what this machine has, and what runs on it; for bug reports."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from fastcnn import _library
from fastcnn.cli.console import make_console, make_table, print_plain
from fastcnn.cli.running import cpu_name

CAPABILITY_VARIABLE = "FASTCNN_CPU_CAPABILITY"
EXIT_BROKEN = 1


def show_info() -> int:
    """Print the facts; exit code 1, after those that torch alone can tell, where the library cannot be loaded."""
    console = make_console()
    for name, value in _environment().items():
        print_plain(console, f"{name + ':':<22}{value}")
    try:
        facts = _library_facts()
    except ImportError as error:
        print_plain(console, f"{'library:':<22}{error}")
        return EXIT_BROKEN
    for name, value in facts.items():
        print_plain(console, f"{name + ':':<22}{value}")
    columns = {"op": "left", "CPU": "left", "CUDA": "left", f"kernels ({_capability()})": "left"}
    table = make_table(None, columns)
    names = op_names()
    kernels = kernels_by_op(names, _library.load().fastcnn_kernels().decode().split())
    for op in names:
        table.add_row(op, _registered(op, "CPU"), _registered(op, "CUDA"), ", ".join(kernels[op]))
    console.print(table)
    print_plain(console, f"kernels of several ops: {', '.join(kernels['']) or 'none'}")
    return 0


def op_names() -> list[str]:
    """Return the names of all ops of the package that are registered, without the namespace."""
    registered = torch._C._dispatch_get_all_op_names()
    return sorted({name.removeprefix("fastcnn::") for name in registered if name.startswith("fastcnn::")})


def kernels_by_op(ops: list[str], kernels: list[str]) -> dict[str, list[str]]:
    """Give each kernel to the op whose name is its longest beginning; those of no single op come under ""."""
    result: dict[str, list[str]] = {op: [] for op in ["", *ops]}
    for kernel in kernels:
        owners = [op for op in ops if kernel == op or kernel.startswith(f"{op}_")]
        result[max(owners, key=len, default="")].append(kernel)
    return result


def _environment() -> dict[str, str]:
    return {
        "fastcnn": f"{_version('fastcnn')} in {Path(_library.__file__).parent}",
        "Python": f"{platform.python_version()}, {platform.platform()}",
        "torch running": torch.__version__,
        "CPU": f"{cpu_name()}, {os.cpu_count()} logical",
        "torch uses": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        **{name: _version(name) for name in ("numpy", "torchvision", "mlxtend", "matplotlib")},
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
        "torch's fallback": "on" if library.fastcnn_get_fallback() else "off",
    }


def _capability() -> str:
    return str(_library.load().fastcnn_cpu_capability().decode())


def _registered(op: str, key: str) -> str:
    return "yes" if torch._C._dispatch_has_kernel_for_dispatch_key(f"fastcnn::{op}", key) else "-"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
