"""Options of the benchmarks, the selection that answers the targets, and the tables at their end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import report
import targets
import torch
from apart import own_compiler_cache

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
MACHINE = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastcnn")
    group.addoption("--batches", default="1,8,32", help="batch sizes, by commas (default: %(default)s)")
    group.addoption("--threads", default="1,2", help="numbers of threads, by commas (default: %(default)s)")
    group.addoption(
        "--dtype", default="float32", choices=list(DTYPES), help="of the layers; networks run in float32 only"
    )
    group.addoption("--budget", default=0.5, type=float, help="seconds to time a layer for (default: %(default)s)")
    group.addoption("--compile", action="store_true", help="measure torch.compile of the whole networks as well")
    group.addoption(
        "--targets",
        action="store_true",
        help="measure a few layers for each target only, and the networks at batch 32, with torch.compile",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name in ("batch", "threads"):
        if name in metafunc.fixturenames:
            values = _numbers(metafunc.config, "--batches" if name == "batch" else "--threads")
            metafunc.parametrize(name, values, ids=[f"{name}{v}" for v in values])


def _numbers(config: pytest.Config, option: str) -> list[int]:
    return [int(v) for v in str(config.getoption(option)).split(",")]


def _case(item: pytest.Item) -> targets.Row:
    """What is known of a benchmark's row before it ran, but for the number of threads."""
    params = item.callspec.params  # type: ignore[attr-defined]
    case = {"pass": params["direction"], "batch": params["batch"]}
    if "layer" not in params:
        return {**case, "network": params["network"]}
    layer, batch = params["layer"], params["batch"]
    elements = batch * layer.channels * layer.height * layer.width
    return {**case, **layer.fields(), "flop": layer.flop(batch), "elements": elements}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--dtype") != "float32":
        networks = [item for item in items if "layer" not in item.callspec.params]  # type: ignore[attr-defined]
        config.hook.pytest_deselected(items=networks)
        items[:] = [item for item in items if item not in networks]
    if not config.getoption("--targets"):
        return
    cases = [_case(item) for item in items]
    most = max(_numbers(config, "--threads"))
    selected = targets.selected(cases)
    kept, left = [], []
    for item, case in zip(items, cases, strict=True):
        # Memory does not depend on the number of threads.
        once = case["pass"] != "peak memory" or item.callspec.params["threads"] == most  # type: ignore[attr-defined]
        (kept if once and case in selected else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    if "threads" in request.fixturenames:
        torch.set_num_threads(request.getfixturevalue("threads"))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compiled(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether torch.compile is among the rivals of a whole network; its files last as long as the test."""
    with own_compiler_cache():
        yield any(bool(request.config.getoption(option)) for option in ("--compile", "--targets"))


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The layers' dtype."""
    return DTYPES[request.config.getoption("--dtype")]


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> float:
    """Seconds to time a layer for."""
    return float(request.config.getoption("--budget"))


def _machine(config: pytest.Config) -> dict[str, Any]:
    """What the report says of the machine; measured once."""
    if MACHINE not in config.stash:
        threads, dtype = _numbers(config, "--threads"), str(config.getoption("--dtype"))
        config.stash[MACHINE] = report.describe_machine(threads, dtype)
    return config.stash[MACHINE]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["fastcnn"] = _machine(config)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = [b.extra_info for b in session.benchmarks if "pass" in b.extra_info] if session else []
    if rows:
        report.print_tables(rows, _machine(config))
