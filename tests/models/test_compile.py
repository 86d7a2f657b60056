"""torch.compile and torch.export on the whole networks.

Nearly all compile with the backend aot_eager: it traces forward and backward through the ops' fake kernels as
inductor does, and leaves out the minutes of C++ compilation; one small network goes through inductor too.
"""

from __future__ import annotations

import copy
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from fastcnn import backends, models


@pytest.fixture(autouse=True)
def fresh_compiler_without_fallback() -> Iterator[None]:
    torch._dynamo.reset()
    with backends.fallback(False):
        yield
    torch._dynamo.reset()


def train_step(network: nn.Module, run: Any, images: Tensor) -> list[Tensor]:
    network.zero_grad()
    output = run(images)
    F.cross_entropy(output, torch.arange(len(images)) % 10).backward()
    return [output.detach(), *(parameter.grad for parameter in network.parameters()), *network.buffers()]


def check_compiled(network: nn.Module, images: Tensor, backend: str) -> None:
    twin = copy.deepcopy(network)
    expected = train_step(twin, twin, images)
    actual = train_step(network, torch.compile(network, fullgraph=True, backend=backend), images)
    for value, truth in zip(actual, expected, strict=True):
        # 1e-6: the gradient of a bias before a BatchNorm is a rounding error of values around 1.
        torch.testing.assert_close(value, truth, rtol=0, atol=max(1e-4 * float(truth.abs().max()), 1e-6))


def test_network_compiles_as_one_graph_forward_and_backward(case: Any) -> None:
    check_compiled(case.build("fastcnn"), case.images(small=True), "aot_eager")


@pytest.mark.skipif(
    not Path(sysconfig.get_path("include"), "Python.h").is_file(),
    reason="torch's inductor compiles C++ that includes Python.h, and this machine has none (python3-dev)",
)
def test_network_compiles_with_inductor() -> None:
    torch.manual_seed(0)
    network = models.initialize(models.lenet(batch_norm=True, pool="max"))
    check_compiled(network, torch.randn(4, 1, 28, 28), "inductor")


def test_network_compiles_with_a_dynamic_batch() -> None:
    torch.manual_seed(0)
    network = models.initialize(models.lenet(batch_norm=True)).eval()
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=count)
    with torch.no_grad():
        for batch in (2, 5, 9):
            images = torch.randn(batch, 1, 28, 28)
            torch.testing.assert_close(compiled(images), network(images))
    assert graphs == 1


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_network_exports_with_a_dynamic_batch(case: Any, training: bool) -> None:
    network = case.build("fastcnn").train(training)
    twin = copy.deepcopy(network)
    batch = Dim("batch", min=2, max=64)
    program = torch.export.export(network, (case.images(2, small=True),), dynamic_shapes=({0: batch},))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any(name.startswith("fastcnn.conv2d") for name in names), names

    exported = program.module()
    for images in (case.images(3, small=True), case.images(2, small=True)):
        torch.testing.assert_close(exported(images), twin(images))
    # In training the exported module keeps running statistics of its own.
    buffers = dict(exported.named_buffers())
    for name, value in twin.named_buffers():
        torch.testing.assert_close(buffers[name], value)
