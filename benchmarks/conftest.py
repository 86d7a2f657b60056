"""Options of the benchmarks, and the table of ratios at their end."""

from __future__ import annotations

from typing import Any

import pytest
import report
import torch

MACHINE = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastcnn")
    group.addoption("--batches", default="1,32", help="batch sizes, by commas (default: %(default)s)")
    group.addoption("--threads", default="1,2", help="numbers of threads, by commas (default: %(default)s)")
    group.addoption("--compile", action="store_true", help="measure torch.compile of the whole networks as well")


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


@pytest.fixture
def compiled(request: pytest.FixtureRequest) -> bool:
    """Whether torch.compile is among the rivals of a whole network."""
    return bool(request.config.getoption("--compile"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    threads = [int(v) for v in str(config.getoption("--threads")).split(",")]
    machine_info["fastcnn"] = config.stash[MACHINE] = report.describe_machine(threads)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = [b.extra_info for b in session.benchmarks if b.extra_info.get("ratio")] if session else []
    if rows:
        report.print_table(rows, config.stash[MACHINE])
