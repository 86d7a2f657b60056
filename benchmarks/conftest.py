"""Options of the benchmarks, and the table of ratios at their end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from fastcnn import _library
from fastcnn.cli.running import cpu_name


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastcnn")
    group.addoption("--batches", default="1,32", help="batch sizes, by commas (default: %(default)s)")
    group.addoption("--threads", default="1,2", help="numbers of threads, by commas (default: %(default)s)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, option in (("batch", "--batches"), ("threads", "--threads")):
        if name in metafunc.fixturenames:
            values = [int(v) for v in str(metafunc.config.getoption(option)).split(",")]
            metafunc.parametrize(name, values, ids=[f"{name}{v}" for v in values])


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    if "threads" in request.fixturenames:
        torch.set_num_threads(request.getfixturevalue("threads"))
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = [b for b in session.benchmarks if b.extra_info.get("ratio")] if session else []
    if not rows:
        return
    table = Table(title="time of torch over time of fastcnn (medians, interleaved); above 1 fastcnn is faster")
    columns = ("network", "layer", "input", "pass", "batch", "threads", "fastcnn ms", "torch ms", "ratio", "GFLOP/s")
    for column in columns:
        table.add_column(column, justify="left" if column in ("network", "layer", "pass") else "right", no_wrap=True)
    for b in rows:
        e = b.extra_info
        table.add_row(
            e["network"], e["layer"], e["input"], e["pass"], str(e["batch"]), str(e["threads"]),
            f"{e['ours_ms']:.3f}", f"{e['torch_ms']:.3f}", f"{e['ratio']:.2f}",
            f"{e['gflops']:.0f}" if e.get("gflops") else "",
        )  # fmt: skip
    cpu = cpu_name()
    console = Console(width=150)
    console.print(table)
    console.print(
        f"float32, channels_last, torch {torch.__version__}, {cpu}, "
        f"fastcnn kernels {_library.load().fastcnn_cpu_capability().decode()}, fallback off"
    )
