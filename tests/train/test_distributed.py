"""Two processes on this machine, started by torchrun, against one."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastcnn.train import load_checkpoint

SCRIPT = Path(__file__).with_name("two_processes.py")
results = runpy.run_path(str(SCRIPT))["results"]
CASES = ["lenet:torch", "lenet:fastcnn", "lenet_bn:fastcnn"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("distributed")
    subprocess.run([*TORCHRUN, str(SCRIPT), str(path), *CASES], check=True, timeout=120)
    return path


@pytest.fixture(scope="module")
def collected(folder):
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("case", [case for case in CASES if "_bn" not in case])
def test_two_processes_give_the_gradients_of_one(case, collected):
    two, one = collected[case], results(*case.split(":"))
    for name, expected in one["gradients"].items():
        # float64 sums of up to 8 * 28 * 28 products in another order: 6272 * 2**-53 = 7e-13 of the largest.
        assert (two["gradients"][name] - expected).abs().max() <= 1e-12 * expected.abs().max(), name
        torch.testing.assert_close(two["state"][name], one["state"][name], rtol=1e-11, atol=1e-13)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-11)
    for figure in ("train_accuracy", "test_accuracy", "examples"):
        assert two[figure] == one[figure], figure


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_with_the_same_weights_and_statistics(case, collected):
    first, second = collected[case]["states"]
    assert torch.equal(first, second)


def test_two_processes_write_one_checkpoint_with_the_random_states_of_both(folder):
    checkpoint = load_checkpoint(folder / "lenet-torch.pt")
    states = checkpoint["rng"]["cpu"]
    assert len(states) == 2 and not torch.equal(*states)
    assert not any(name.startswith("module.") for name in checkpoint["model"])
