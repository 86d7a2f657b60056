"""Compiled networks on the plan itself, against their float64 selves: as exact as eager mode, or Winograd's bound."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from compiling import prepare, random
from threads import run_in_threads
from torch import Tensor, nn

import fastcnn
from fastcnn import backends, models
from fastcnn._torchvision import import_torchvision
from fastcnn.compilation.backend import fastcnn as backend

torchvision = import_torchvision()

# Rms and largest error, of the output's rms. Eager mode's is at times that of rounding a handful of outputs.
WINOGRAD = (1e-5, 1e-4)  # docs/numerics.md
ROUNDING = (4 * torch.finfo(torch.float32).eps, 16 * torch.finfo(torch.float32).eps)
OURS: dict[str, tuple[int, dict[str, Any]]] = {
    "lenet": (28, {}),
    "alexnet": (224, {"hidden_layers": 1}),
    "vgg11": (224, {"width_divisor": 8, "hidden_units": 64}),
    "nin": (67, {}),
    "googlenet": (64, {}),
    "resnet18": (64, {}),
    "densenet": (64, {}),
}
TORCHVISION = ("resnet18", "mobilenet_v2", "densenet121", "squeezenet1_1")


def networks() -> list[Any]:
    ours = [pytest.param(name, id=name) for name in OURS]
    return ours + [pytest.param(f"torchvision:{name}", id=f"torchvision-{name}") for name in TORCHVISION]


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    source, _, inner = name.rpartition(":")
    if source:
        return prepare(torchvision.models.get_model(inner, weights=None)), (3, 64, 64)
    size, arguments = OURS[name]
    return prepare(models.initialize(models.build(name, layers="torch", **arguments))), (1, size, size)


def errors(output: Tensor, exact: Tensor) -> tuple[float, float]:
    """Root mean square and largest error, of the exact output's root mean square."""
    difference, rms = output.double() - exact, float(exact.square().mean().sqrt())
    return float(difference.square().mean().sqrt()) / rms, float(difference.abs().max()) / rms


@pytest.mark.parametrize("name", networks())
def test_plan_of_a_network_is_as_exact_as_eager_mode(name: str) -> None:
    model, sizes = build(name)
    compiled = fastcnn.compile(model, random(1, *sizes))
    double = copy.deepcopy(model).double()
    for batch in (1, 3):
        images = random(batch, *sizes, seed=batch)
        with torch.inference_mode():
            exact = double(images.double())
            eager = errors(model(images), exact)
            with backends.winograd(False):
                direct = errors(compiled(images.to(memory_format=torch.channels_last)), exact)
            by_rule = errors(compiled(images), exact)
        for of_eager, of_direct, of_rule, rounding, bound in zip(
            eager, direct, by_rule, ROUNDING, WINOGRAD, strict=True
        ):
            assert of_direct <= 3 * of_eager + rounding, (name, batch, direct, eager)
            assert of_rule <= max(3 * of_eager, bound), (name, batch, by_rule, eager)


def test_plan_of_a_network_gives_an_image_the_same_bits_in_any_batch() -> None:
    model, sizes = build("alexnet")
    compiled = fastcnn.compile(model, random(1, *sizes))
    images = random(3, *sizes)
    with backends.batch_invariant(True):
        assert torch.equal(compiled(images[:1]), compiled(images)[:1])


def test_plan_of_a_network_runs_in_several_threads_at_once() -> None:
    model, sizes = build("googlenet")
    compiled = fastcnn.compile(model, random(1, *sizes))
    batches = [random(batch, *sizes, seed=batch) for batch in (1, 2, 3, 4)]
    expected = [compiled(images) for images in batches]
    found: list[Tensor | None] = [None] * len(batches)

    def run(place: int) -> None:
        for _ in range(5):
            found[place] = compiled(batches[place])

    run_in_threads(run, len(batches))
    assert all(torch.equal(got, want) for got, want in zip(found, expected, strict=True) if got is not None)
    assert None not in found


def test_plan_of_a_network_is_kept_in_a_file(tmp_path: Any) -> None:
    model, sizes = build("resnet18")
    compiled = fastcnn.compile(model, random(1, *sizes))
    compiled.save(tmp_path / "resnet18.fastcnn")
    images = random(3, *sizes)
    assert torch.equal(fastcnn.load(tmp_path / "resnet18.fastcnn")(images), compiled(images))


def test_backend_of_torch_compile_runs_the_plan() -> None:
    """At its first call for one batch size, later for any; each module with its own weights."""
    torch._dynamo.reset()
    try:
        for name in ("torchvision:resnet18", "densenet"):
            model, sizes = build(name)
            compiled = torch.compile(model, backend=backend)
            for batch in (2, 3, 1):
                images = random(batch, *sizes, seed=batch)
                with torch.inference_mode():
                    rms, largest = errors(compiled(images), copy.deepcopy(model).double()(images.double()))
                assert rms <= WINOGRAD[0] and largest <= WINOGRAD[1]
    finally:
        torch._dynamo.reset()
