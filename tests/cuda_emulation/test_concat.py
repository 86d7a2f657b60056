"""concat's CUDA kernel compiled by the host's compiler and run there: its indexing, not its speed."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("emulation") / "libconcat.so"
    compiler = os.environ.get("CXX", "c++")
    flags = [
        "-std=c++20",
        "-O1",
        "-fPIC",
        "-shared",
        "-Wall",
        "-Werror",
        "-fsanitize=undefined",
        "-fno-sanitize-recover",
    ]
    includes = [f"-I{HERE / 'include'}", f"-I{SOURCES}"]
    subprocess.run([compiler, *flags, *includes, HERE / "concat.cpp", "-o", library], check=True)
    return ctypes.CDLL(str(library))


def emulate(
    kernel: ctypes.CDLL, inputs: list[np.ndarray], blocks: int, threads: int, wide_index: bool
) -> tuple[np.ndarray, int]:
    """The inputs [rows, run] joined in each row, and the bytes that a thread moved at a time."""
    rows = inputs[0].shape[0]
    row_bytes = sum(part.shape[1] for part in inputs)
    guarded = aligned(rows * row_bytes + 32, fill=0xEE)  # what lies behind the output must stay as it is
    pointers = (ctypes.c_void_p * len(inputs))(*[part.ctypes.data for part in inputs])
    run_bytes = (ctypes.c_int64 * len(inputs))(*[part.shape[1] for part in inputs])
    unit = kernel.concat(
        ctypes.c_void_p(guarded.ctypes.data), ctypes.c_int64(rows), len(inputs), pointers, run_bytes,
        blocks, threads, int(wide_index),
    )  # fmt: skip
    assert (guarded[rows * row_bytes :] == 0xEE).all()
    return guarded[: rows * row_bytes].reshape(rows, row_bytes), unit


def aligned(size: int, fill: int = 0, offset: int = 0) -> np.ndarray:
    """Bytes that start `offset` behind a multiple of 16."""
    memory = np.full(size + 32, fill, dtype=np.uint8)
    start = -memory.ctypes.data % 16 + offset
    return memory[start : start + size]


def random_input(rng: np.random.Generator, rows: int, run_bytes: int, offset: int = 0) -> np.ndarray:
    part = aligned(rows * run_bytes, offset=offset).reshape(rows, run_bytes)
    part[:] = rng.integers(0, 256, part.shape)
    return part


@pytest.mark.parametrize("wide_index", [False, True])
@pytest.mark.parametrize("unit", [1, 2, 4, 8, 16])
def test_concat_kernel_joins_runs_of_every_unit(kernel: ctypes.CDLL, unit: int, wide_index: bool) -> None:
    rng = np.random.default_rng(unit)
    for rows, widths in [(1, [1]), (1, [3, 1]), (5, [2, 0, 7]), (33, [1] * 64), (4, [300, 1, 129])]:
        inputs = [random_input(rng, rows, unit * width) for width in widths]
        for blocks, threads in [(1, 1), (2, 32), (7, 64)]:
            output, moved = emulate(kernel, inputs, blocks, threads, wide_index)
            assert moved >= unit
            assert (output == np.concatenate(inputs, axis=1)).all()


@pytest.mark.parametrize(("offset", "unit"), [(0, 16), (8, 8), (4, 4), (2, 2), (1, 1)])
def test_concat_unit_divides_an_inputs_address(kernel: ctypes.CDLL, offset: int, unit: int) -> None:
    rng = np.random.default_rng(0)
    inputs = [random_input(rng, 3, 32), random_input(rng, 3, 16, offset=offset)]
    output, moved = emulate(kernel, inputs, 1, 32, wide_index=False)
    assert moved == unit
    assert (output == np.concatenate(inputs, axis=1)).all()
