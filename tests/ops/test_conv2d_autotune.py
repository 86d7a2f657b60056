"""The choice of a convolution's algorithm by measuring, and the file that keeps it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from kernels import recorded

from fastcnn import backends
from fastcnn.ops import conv2d


def call(size: int, backward: bool = False) -> None:
    """A shape that no other test uses, by its size."""
    input = torch.randn(2, 16, size, size).to(memory_format=torch.channels_last).requires_grad_(backward)
    weight = torch.randn(24, 16, 3, 3).to(memory_format=torch.channels_last).requires_grad_(backward)
    output = conv2d(input, weight, padding=1)
    if backward:
        output.sum().backward()


def test_autotune_measures_every_algorithm_once_and_then_uses_one() -> None:
    with backends.autotune(True):
        ran = Counter(recorded(lambda: call(17)))
        assert {"conv2d_direct", "winograd_f4x3", "winograd_f2x3", "aten"} <= ran.keys()
        first = recorded(lambda: call(17))
        assert len(first) == 1 and recorded(lambda: call(17)) == first
        assert len(recorded(lambda: call(17, backward=True))) > 10  # the gradients are measured too
        assert len(recorded(lambda: call(17, backward=True))) == 3
    assert len(recorded(lambda: call(18))) == 1


def test_autotune_measures_only_what_the_switches_allow() -> None:
    with backends.autotune(True), backends.fallback(False), backends.winograd(False):
        assert set(recorded(lambda: call(19))) == {"conv2d_direct"}


def test_autotune_gives_way_where_results_must_not_vary() -> None:
    with backends.autotune(True):
        with backends.batch_invariant(True):
            assert len(recorded(lambda: call(21))) == 1
        with backends.conv2d_algorithm("direct"):
            assert recorded(lambda: call(21)) == ["conv2d_direct"]
        torch.use_deterministic_algorithms(True)
        try:
            assert len(recorded(lambda: call(21))) == 1
        finally:
            torch.use_deterministic_algorithms(False)
        assert len(recorded(lambda: call(21))) > 10


CHILD = """
import sys
import torch
from fastcnn import _library, backends
from fastcnn.ops import conv2d
backends.autotune(True)
torch.set_num_threads(1)
library = _library.load()
library.fastcnn_record_kernels(1)
for size in range(5, 5 + int(sys.argv[1])):
    conv2d(torch.ones(1, 16, size, size), torch.ones(16, 16, 3, 3))
print(len(library.fastcnn_recorded_kernels().split()))
"""


def start(cache: Path, shapes: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "FASTCNN_AUTOTUNE_CACHE": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(shapes)], cwd="/", env=environment, stdout=subprocess.PIPE, text=True
    )


def kernels_run(process: subprocess.Popen[str]) -> int:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return int(output)


def test_autotune_file_serves_later_processes_and_survives_corruption(tmp_path: Path) -> None:
    cache = tmp_path / "autotune"
    assert kernels_run(start(cache, 3)) > 3
    assert kernels_run(start(cache, 3)) == 3
    whole = cache.read_text()
    # A cut line, a foreign one, an unknown algorithm, bytes that are no text: passed over, and the rest still counts.
    cache.write_bytes(whole[: len(whole) // 2].encode() + b"\n\x00\xff\xfe foreign\nfastcnn-autotune-1 key nonsense")
    again = kernels_run(start(cache, 3))
    assert again > 3
    assert kernels_run(start(cache, 3)) == 3


def test_autotune_file_takes_writers_side_by_side(tmp_path: Path) -> None:
    cache = tmp_path / "autotune"
    for process in [start(cache, 6) for _ in range(3)]:
        kernels_run(process)
    assert kernels_run(start(cache, 6)) == 6
    assert all(len(line.split()) == 3 for line in cache.read_text().splitlines() if line)


@pytest.mark.parametrize("path", ["/proc/nowhere/autotune", "/"])
def test_autotune_file_that_cannot_be_written_is_no_error(path: str) -> None:
    assert kernels_run(start(Path(path), 2)) > 2
