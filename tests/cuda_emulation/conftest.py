"""The emulator, whose compiled libraries serve all tests of a session, and those of the mutants."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import emulated_kernels
import pytest
import torch
from emulation import Emulator


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The oracle's tensors are small: threads that wait for each other would take most of the time."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("emulation"))


@pytest.fixture(autouse=True, scope="session")
def mutants(
    request: pytest.FixtureRequest, emulator: Emulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Emulator]]]:
    """The mutants of the tests that are to run, by the tests' ids: they compile on all cores while other tests run."""
    folder = tmp_path_factory.mktemp("mutants")
    chosen = [item.callspec for item in request.session.items if "mutation" in getattr(item, "fixturenames", ())]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            spec.id: pool.submit(emulated_kernels.mutant, emulator, folder / spec.id, **spec.params) for spec in chosen
        }
        pool.shutdown(cancel_futures=True)
