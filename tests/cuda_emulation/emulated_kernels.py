"""The one list of the kernels of csrc/cuda, which drives their emulated tests.

A module `emulated_<op>` has
- `KERNELS`: the `__global__` functions of csrc/cuda/<op>.cuh, each with its mutations;
- `configurations(rng)`: generated and chosen cases, at least 200, in an order that shows faults early;
- `check(emulator, configuration)`: runs one through launch_<op> and compares it with the float64 oracle; raises
  AssertionError where they differ. Returns the launches;
- `cells(configuration, launches)`: what a configuration covers, and `CELLS`, what all together must cover.
"""

from __future__ import annotations

import importlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from emulation import SOURCES, Emulator

OPS = [
    "avg_pool2d",
    "batch_norm",
    "concat",
    "conv2d_depthwise",
    "conv2d_direct",
    "conv2d_gemm",
    "conv2d_sums",
    "max_pool2d",
    "relu_mask",
]


@dataclass(frozen=True)
class Mutation:
    """A fault: `old`, which stands once in the file, replaced by `new`.

    `fault` is its class: "index", "bounds", "alignment", "barrier", "race", "unwritten", "arithmetic", "geometry" ...
    `file` is another file of csrc/cuda than the kernel's own, such as the launcher.
    """

    fault: str
    old: str
    new: str
    file: str = ""


@dataclass(frozen=True)
class Kernel:
    """A `__global__` function, the file of csrc/cuda that holds it, and faults that the tests must find."""

    name: str
    file: str
    mutations: list[Mutation] = field(default_factory=list)


Cell = tuple[object, ...]  # a combination of conditions


def module(op: str) -> ModuleType:
    """Give the op's configurations, check and kernels."""
    return importlib.import_module(f"emulated_{op}")


def kernels() -> dict[str, Kernel]:
    """Give all kernels by name."""
    return {kernel.name: kernel for op in OPS for kernel in module(op).KERNELS}


def mutant(emulator: Emulator, folder: Path, op: str, kernel: Kernel, mutation: Mutation) -> Emulator:
    """Give an emulator of the sources with a mutation, which has compiled the op in `folder`."""
    sources = folder / "csrc"
    for name in ("cuda", "common"):
        shutil.copytree(SOURCES / name, sources / name)
    path = sources / "cuda" / (mutation.file or kernel.file)
    text = path.read_text()
    assert text.count(mutation.old) == 1, f"{path.name} has {text.count(mutation.old)} of: {mutation.old}"
    path.write_text(text.replace(mutation.old, mutation.new))
    mutated = emulator.of(sources, folder, lines=False)
    mutated.compile(op)
    return mutated
