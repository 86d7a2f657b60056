"""Every CUDA kernel on the host: against the oracle over generated configurations, and mutated, which must be found."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from concurrent.futures import Future

import emulated_kernels
import emulation
import pytest
import torch
from emulated_kernels import Cell, Kernel, Mutation
from emulation import SOURCES, EmulationError, Emulator, Launch

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
    launched = {path.name.removesuffix("_launch.cu") for path in CUDA.glob("*.cu")}
    assert launched == set(emulated_kernels.OPS)


@pytest.mark.parametrize("op", emulated_kernels.OPS)
def test_kernels_match_the_oracle(op: str, emulator: Emulator) -> None:
    module = emulated_kernels.module(op)
    count, codes, cells = 0, set[int](), set[Cell]()
    for configuration in configurations(op):
        try:
            launches: list[Launch] = module.check(emulator, configuration)
        except AssertionError as error:
            raise AssertionError(f"{configuration}: {error}") from error
        codes |= {launch.code for launch in launches}
        cells |= module.cells(configuration, launches)
        count += 1
    assert count >= 200
    missing = module.CELLS - cells
    assert not missing, f"no configuration covers {missing}"
    instances = emulator.library(op).instances
    assert {name.split("<")[0] for name in instances.values()} == {kernel.name for kernel in module.KERNELS}
    idle = {name for code, name in instances.items() if code not in codes}
    assert not idle, f"no configuration runs {idle}"


# What the emulator must say of a fault of a class; wrong values are enough for the others.
FAULTS = {
    "bounds": "out of bounds|misaligned",
    "alignment": "misaligned|must start at a multiple",
    "barrier": "not all threads reach|different collectives",
    "race": "race",
    "unwritten": "nobody wrote",
    "geometry": "no such launch",
}


def test_mutations_cover_each_class_of_fault() -> None:
    mutations = [mutation for kernel in emulated_kernels.kernels().values() for mutation in kernel.mutations]
    assert {mutation.fault for mutation in mutations} >= set(FAULTS)


MUTANTS = [
    pytest.param(op, kernel, mutation, id=f"{kernel.name}-{i}-{mutation.fault}")
    for op in emulated_kernels.OPS
    for kernel in emulated_kernels.module(op).KERNELS
    for i, mutation in enumerate(kernel.mutations)
]


@pytest.mark.skipif(emulation.BUILD != "checked", reason="the sanitizers end the process")
@pytest.mark.parametrize(("op", "kernel", "mutation"), MUTANTS)
def test_mutant_is_found(
    op: str,
    kernel: Kernel,
    mutation: Mutation,
    mutants: dict[str, Future[Emulator]],
    request: pytest.FixtureRequest,
) -> None:
    mutant = mutants[request.node.callspec.id].result()
    for configuration in configurations(op):
        try:
            emulated_kernels.module(op).check(mutant, configuration)
        except AssertionError as error:
            kinds = FAULTS.get(mutation.fault)
            if kinds is None or (isinstance(error, EmulationError) and re.search(kinds, str(error))):
                return
    raise AssertionError(f"no configuration shows the fault of {kernel.name}: {mutation.old} -> {mutation.new}")
