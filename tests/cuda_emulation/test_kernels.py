"""Every CUDA kernel on the host: against the oracle over generated configurations, and mutated, which must be found."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import emulated_kernels
import emulation
import pytest
import torch
from emulated_kernels import Kernel, Mutation
from emulation import SOURCES, EmulationError, Emulator

CUDA = SOURCES / "cuda"


def configurations(op: str) -> Iterator[object]:
    torch.manual_seed(0)
    return emulated_kernels.module(op).configurations(random.Random(0))


def test_kernels_listed_are_all_global_functions_of_the_sources() -> None:
    declaration = re.compile(r"__global__[\w\s()]*?\bvoid\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(")
    files = CUDA.glob("*.cuh")
    written = {(name, path.name) for path in files for name in declaration.findall(path.read_text())}
    assert written == {(kernel.name, kernel.file) for kernel in emulated_kernels.kernels().values()}
    assert all(name.endswith("_kernel") for name, _ in written)
    assert all(kernel.mutations for kernel in emulated_kernels.kernels().values())


@pytest.mark.parametrize("op", emulated_kernels.OPS)
def test_kernels_match_the_oracle(op: str, emulator: Emulator) -> None:
    module = emulated_kernels.module(op)
    count, ran = 0, set()
    for configuration in configurations(op):
        try:
            ran |= {launch.kernel for launch in module.check(emulator, configuration)}
        except AssertionError as error:
            raise AssertionError(f"{configuration}: {error}") from error
        count += 1
    assert count >= 200
    assert ran == {kernel.name for kernel in module.KERNELS}


# What the emulator must say of a fault of a class; wrong values are enough for the others.
FAULTS = {
    "bounds": "out of bounds|misaligned",
    "barrier": "not all threads reach|different collectives",
    "race": "race",
    "unwritten": "nobody wrote",
    "geometry": "no such launch",
}
MUTANTS = [
    pytest.param(op, kernel, mutation, id=f"{kernel.name}-{i}-{mutation.fault}")
    for op in emulated_kernels.OPS
    for kernel in emulated_kernels.module(op).KERNELS
    for i, mutation in enumerate(kernel.mutations)
]


@pytest.mark.skipif(emulation.BUILD != "checked", reason="the sanitizers end the process")
@pytest.mark.parametrize(("op", "kernel", "mutation"), MUTANTS)
def test_mutant_is_found(op: str, kernel: Kernel, mutation: Mutation, emulator: Emulator, tmp_path: Path) -> None:
    sources = tmp_path / "csrc"
    for folder in ("cuda", "common"):
        shutil.copytree(SOURCES / folder, sources / folder)
    path = sources / "cuda" / (mutation.file or kernel.file)
    text = path.read_text()
    assert text.count(mutation.old) == 1, f"{path.name} has {text.count(mutation.old)} of: {mutation.old}"
    path.write_text(text.replace(mutation.old, mutation.new))
    mutant = emulator.of(sources, tmp_path)
    for configuration in configurations(op):
        try:
            emulated_kernels.module(op).check(mutant, configuration)
        except AssertionError as error:
            kinds = FAULTS.get(mutation.fault)
            if kinds is None or (isinstance(error, EmulationError) and re.search(kinds, str(error))):
                return
    raise AssertionError(f"no configuration shows the fault: {mutation.old} -> {mutation.new}")
