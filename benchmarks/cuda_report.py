"""What the CUDA compiler makes of every kernel, without a GPU: python benchmarks/cuda_report.py [--kernel conv2d]

For each kernel and architecture: registers, shared memory, spills, theoretical occupancy, and from the disassembly the
128-bit loads and stores and the matrix instructions. Fails where a kernel spills. Needs nvcc and ptxas on PATH, and
nvdisasm, which `pip install nvidia-cuda-nvdisasm` brings.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "csrc" / "cuda"
WARP = 32
REGISTERS = 65536  # of an SM, on all of these architectures
REGISTER_UNIT = 256  # a warp's registers are given in multiples of
WARP_UNIT = 4  # so many warps share a scheduler's registers evenly


@dataclass(frozen=True)
class Limits:
    """What an SM holds: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

    threads: int
    blocks: int
    shared: int  # bytes
    shared_unit: int = 128
    reserved: int = 1024  # bytes of shared memory that every block costs beside its own


ARCHITECTURES = {
    "7.5": Limits(1024, 16, 64 << 10, shared_unit=256, reserved=0),
    "8.0": Limits(2048, 32, 164 << 10),
    "8.6": Limits(1536, 16, 100 << 10),
    "8.9": Limits(1536, 24, 100 << 10),
    "9.0": Limits(2048, 32, 228 << 10),
    "10.0": Limits(2048, 32, 228 << 10),
    "12.0": Limits(1536, 24, 100 << 10),
}


@dataclass
class Kernel:
    """One instance of a kernel, compiled for one architecture."""

    symbol: str
    architecture: str
    threads: int = 0  # of a block: the kernel's __launch_bounds__
    registers: int = 0
    shared: int = 0  # bytes
    stack: int = 0  # bytes of a thread
    spills: int = 0  # bytes stored and loaded
    wide_loads: int = 0  # instructions of 128 bits, from global and shared memory
    wide_stores: int = 0
    matrix: int = 0  # instructions on tensor cores
    name: str = ""

    @property
    def occupancy(self) -> float:
        """The share of an SM's threads that may run at once."""
        return occupancy(self.architecture, self.threads, self.registers, self.shared)


def occupancy(architecture: str, threads: int, registers: int, shared: int) -> float:
    """How many of an SM's threads run at once, at the block size, registers a thread and bytes a block given.

    As cudaOccMaxActiveBlocksPerMultiprocessor of CUDA's cuda_occupancy.h, which asks a device for its limits.
    """
    limits = ARCHITECTURES[architecture]
    warps = -(-threads // WARP)
    by_threads = limits.threads // WARP // warps
    warp_registers = round_up(max(registers, 1) * WARP, REGISTER_UNIT)
    by_registers = REGISTERS // WARP_UNIT // warp_registers * WARP_UNIT // warps
    block_shared = round_up(shared + limits.reserved, limits.shared_unit)
    by_shared = limits.shared // block_shared if block_shared else limits.blocks
    blocks = min(by_threads, by_registers, by_shared, limits.blocks)
    return blocks * warps * WARP / limits.threads


def round_up(value: int, unit: int) -> int:
    """Give the next multiple of `unit`."""
    return -(-value // unit) * unit


def read_ptxas(text: str, architecture: str) -> dict[str, Kernel]:
    """Read what `ptxas -v` says of each kernel."""
    kernels = {}
    for part in re.split(r"Compiling entry function '", text)[1:]:
        kernel = Kernel(part.split("'")[0], architecture)
        kernel.registers = number(r"Used (\d+) registers", part)
        kernel.shared = number(r"(\d+) bytes smem", part)
        kernel.stack = number(r"(\d+) bytes stack frame", part)
        kernel.spills = number(r"(\d+) bytes spill stores", part) + number(r"(\d+) bytes spill loads", part)
        kernels[kernel.symbol] = kernel
    return kernels


def number(pattern: str, text: str) -> int:
    """Give the number that a pattern finds first, or 0."""
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def read_block_sizes(ptx: str) -> dict[str, int]:
    """Read from PTX the most threads that each kernel's __launch_bounds__ allow a block."""
    sizes = {}
    for part in re.split(r"\.entry ", ptx)[1:]:
        found = re.match(r"(\w+)\([^)]*\)\s*((?:\.\w+[^{\n]*\s*)*)\{", part)
        bounds = re.search(r"\.maxntid ([\d, ]+)", found[2]) if found else None
        if found and bounds:
            x, y, z = ([int(n) for n in bounds[1].split(",")] + [1, 1])[:3]
            sizes[found[1]] = x * y * z
    return sizes


def read_sass(text: str) -> dict[str, Counter[str]]:
    """Count in nvdisasm's text each function's loads and stores of 128 bits and its matrix instructions."""
    counts: dict[str, Counter[str]] = {}
    function = ""
    for line in text.splitlines():
        if found := re.match(r"\s*\.section\s+\.text\.([\w$]+)", line):
            function = found[1]
            counts[function] = Counter()
        elif found := re.search(r"/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9.]*)", line):
            operation, *modifiers = found[1].split(".")
            if operation in ("LDG", "LDS", "LD", "LDGSTS") and "128" in modifiers:
                counts[function]["loads"] += 1
            elif operation in ("STG", "STS", "ST") and "128" in modifiers:
                counts[function]["stores"] += 1
            elif operation in ("HMMA", "IMMA", "DMMA", "QMMA", "OMMA", "HGMMA"):
                counts[function]["matrix"] += 1
    return counts


def compile_kernels(source: Path, architecture: str, folder: Path) -> list[Kernel]:
    """Compile a launcher for an architecture and read what came out."""
    name = architecture.replace(".", "")
    base = folder / f"{source.stem}_{name}"
    ptx, cubin = base.with_suffix(".ptx"), base.with_suffix(".cubin")
    run("nvcc", "-std=c++20", "-O3", "-arch", f"compute_{name}", "-I", CUDA.parent, "-ptx", source, "-o", ptx)
    log = run("ptxas", "-v", "-arch", f"sm_{name}", ptx, "-o", cubin)
    kernels = read_ptxas(log, architecture)
    sizes = read_block_sizes(ptx.read_text())
    counts = read_sass(run(disassembler(), cubin))
    names = run("c++filt", *kernels).splitlines() if kernels else []
    for (symbol, kernel), plain in zip(kernels.items(), names, strict=True):
        kernel.name = plain.replace("fastcnn::cuda::", "").removeprefix("void ").split("(")[0]
        kernel.threads = sizes.get(symbol, 0)
        count = counts.get(symbol, Counter())
        kernel.wide_loads, kernel.wide_stores, kernel.matrix = count["loads"], count["stores"], count["matrix"]
    return list(kernels.values())


def disassembler() -> str:
    """Find nvdisasm on PATH or where pip put it."""
    packaged = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    found = shutil.which("nvdisasm") or shutil.which("nvdisasm", path=str(packaged))
    if found is None:
        raise SystemExit("nvdisasm is missing; run: pip install nvidia-cuda-nvdisasm")
    return found


def run(*command: object) -> str:
    """Run a compiler; return all that it says."""
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{command[0]} failed:\n{result.stderr}")
    return result.stdout + result.stderr


def faults(kernels: list[Kernel]) -> list[str]:
    """Name what no kernel may have."""
    found = []
    for kernel in kernels:
        where = f"{kernel.name} on {kernel.architecture}"
        if kernel.spills:
            found.append(f"{where} spills {kernel.spills} bytes")
        if not kernel.threads:
            found.append(f"{where} has no __launch_bounds__, so nothing is known of its occupancy")
        elif kernel.occupancy == 0:
            found.append(f"{where} cannot run: a block needs more than an SM has")
    return found


def table(kernels: list[Kernel]) -> Table:
    """One row for each kernel, as many lines as it compiles differently."""
    result = Table("kernel", "architecture", title="What ptxas and nvdisasm say of every kernel")
    headings = ["threads", "registers", "shared (B)", "stack (B)", "spills (B)", "occupancy"]
    for heading in [*headings, "128-bit loads", "128-bit stores", "matrix instr."]:
        result.add_column(heading, justify="right")
    for kernel in kernels:
        numbers = [kernel.threads, kernel.registers, kernel.shared, kernel.stack, kernel.spills]
        wide = [kernel.wide_loads, kernel.wide_stores, kernel.matrix]
        share = f"{kernel.occupancy:.0%}" if kernel.threads else "?"
        result.add_row(kernel.name, kernel.architecture, *map(str, numbers), share, *map(str, wide))
    return result


def main(
    kernel: Annotated[str, typer.Option(help="only launchers and kernels whose name contains this")] = "",
    architectures: Annotated[str, typer.Option(help="comma-separated")] = ",".join(ARCHITECTURES),
    jobs: Annotated[int, typer.Option(help="compilers at a time")] = 2,
) -> None:
    """Compile every launcher of csrc/cuda for every architecture; print what came out; fail on spills."""
    sources = sorted(CUDA.glob("*_launch.cu"))
    sources = [source for source in sources if kernel in source.stem or kernel in (source.stem + source.read_text())]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        tasks = [(source, architecture) for source in sources for architecture in architectures.split(",")]
        lists = pool.map(lambda task: compile_kernels(*task, Path(folder)), tasks)
        found = [k for kernels in lists for k in kernels if kernel in k.name or kernel in k.symbol]
    order = list(ARCHITECTURES)
    found.sort(key=lambda k: (k.name, order.index(k.architecture)))
    Console(width=None if sys.stdout.isatty() else 180).print(table(found))
    if problems := faults(found):
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    typer.run(main)
