"""fastcnn.convert: what a forward asks of its arguments, and what it reads beside them, after it was traced."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from conversions import calls_of_fused_op
from torch import Tensor, nn

import fastcnn
from fastcnn.conversion.plan import plan

SCALE = 1.0
FACTORS = {"relu": [1.0]}


class Norm(nn.Module):
    """A batch norm, and what a subclass does with it."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()


class Scaled(Norm):
    """Its result depends on attributes of its class and on globals, one of them in another function."""

    factor = 1.0
    bounds = (-9.0, 9.0)
    squash = torch.sigmoid

    def forward(self, x: Tensor) -> Tensor:
        return self.squash(F.relu(self.bn(x)) * self.factor).clamp(*self.bounds) * scale()


def scale() -> float:
    return SCALE * FACTORS["relu"][0]


def images(channels: int = 4) -> Tensor:
    return torch.randn(2, channels, 5, 5, generator=torch.Generator().manual_seed(5))


def with_forward(forward: Callable[[Any, Any], Any]) -> nn.Module:
    return type("Forward", (Norm,), {"forward": lambda self, x: forward(self, x)})().eval()


class Wrapped:
    """No tensor, but something that holds one."""

    def __init__(self, tensors: Tensor) -> None:
        self.tensors = tensors


# What the forward does, and words of the reason for which it is left as it is.
REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "is_tensor": (lambda s, x: F.relu(s.bn(x * 2 if torch.is_tensor(x) else x)), "has torch ask"),
    "parameter": (lambda s, x: F.relu(s.bn(x * 2 if isinstance(x, nn.Parameter) else x)), "has torch ask"),
    "type": (lambda s, x: F.relu(s.bn(x * 2 if type(x) is Tensor else x)), "names type"),
    "type in a function": (lambda s, x: F.relu(s.bn(_doubled(x))), "names type"),
    "callable": (lambda s, x: F.relu(s.bn(x * 2 if callable(x) else x)), "names callable"),
    "hasattr": (lambda s, x: F.relu(s.bn(x.tensors if hasattr(x, "tensors") else x)), "tensors"),
    "getattr": (lambda s, x: F.relu(s.bn(getattr(x, "tensors", x))), "tensors"),
    "attribute error": (lambda s, x: F.relu(s.bn(_unwrapped(x))), "reads tensors of an argument"),
    "hasattr of a result": (
        lambda s, x: (lambda y: y.logits if hasattr(y, "logits") else y)(s.relu(s.bn(x))),
        "logits",
    ),
    "shape": (lambda s, x: F.relu(s.bn(x * 2 if isinstance(x.shape, torch.Size) else x)), "type of what it computed"),
    "class": (lambda s, x: F.relu(s.bn(x)) * len(s.__class__.__name__), "names __class__"),
    "instance": (lambda s, x: F.relu(s.bn(x)) * vars(s).get("factor", 1.0), "names vars"),
    "numpy": (lambda s, x: F.relu(s.bn(x)) * (numpy.random.rand() < 2), ""),
}


def _doubled(x: Any) -> Any:
    return x * 2 if type(x) is Tensor else x


def _unwrapped(x: Any) -> Any:
    try:
        return x.tensors
    except AttributeError:
        return x


@pytest.mark.parametrize("name", REFUSED)
def test_convert_leaves_a_forward_that_asks_what_it_got(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, reason = REFUSED[name]
    model = with_forward(forward)
    original = copy.deepcopy(model)
    fastcnn.convert(model)
    report = plan(model)
    assert not report.fused
    assert report.unfused and all(reason in entry.reason for entry in report.unfused), report.unfused
    for x in (images(), nn.Parameter(images())):
        torch.testing.assert_close(model(x), original(x))
    if "attr" in name and "result" not in name:
        torch.testing.assert_close(model(Wrapped(images())), original(Wrapped(images())))


FUSED: dict[str, Callable[[Any, Tensor], Any]] = {
    "isinstance of a module": lambda s, x: s.relu(s.bn(x)) if isinstance(s.relu, nn.ReLU) else x,
    "isinstance of another module": lambda s, x: s.relu(s.bn(x if isinstance(s.bn, nn.ReLU) else x * 2)),
    "hasattr of the module": lambda s, x: s.relu(s.bn(x)) * (2 if hasattr(s, "other") else 3),
    "getattr of the module": lambda s, x: s.relu(getattr(s, "b" + "n")(x)),
    "unpacking": lambda s, x: (lambda y: torch.cat((y[1], y[0]), 1))(_halves(s.relu(s.bn(x)))),
    "shape": lambda s, x: s.relu(s.bn(x)).reshape(x.shape[0], -1),
    "cast": lambda s, x: s.relu(s.bn(x.type(torch.float32))),
}


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, 1)
    return first, second


@pytest.mark.parametrize("name", FUSED)
def test_convert_fuses_what_asks_nothing_of_its_arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_forward(FUSED[name])
    original = copy.deepcopy(model)
    fastcnn.convert(model)
    assert [entry.name for entry in plan(model).fused] == ["bn"]
    assert calls_of_fused_op(monkeypatch, lambda: model(images())) == 1
    torch.testing.assert_close(model(images()), original(images()))


def changes(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> dict[str, Callable[[], Any]]:
    return {
        "of the object": lambda: setattr(model, "factor", 3.0),
        "of the object, a tensor": lambda: setattr(model, "factor", torch.arange(5.0)),
        "of the class": lambda: monkeypatch.setattr(Scaled, "factor", 3.0),
        "of the class, a tuple": lambda: monkeypatch.setattr(Scaled, "bounds", (0.6, 0.7)),
        "of the class, a function": lambda: monkeypatch.setattr(Scaled, "squash", torch.tanh),
        "global": lambda: monkeypatch.setitem(globals(), "SCALE", 3.0),
        "in a global": lambda: monkeypatch.setitem(FACTORS, "relu", [3.0]),
    }


@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("what", changes(pytest.MonkeyPatch(), nn.Module()))
def test_convert_follows_plain_values(
    what: str, copied: Callable[[nn.Module], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Scaled().eval()
    model = copied(fastcnn.convert(copy.deepcopy(original)))
    assert calls_of_fused_op(monkeypatch, lambda: model(images())) == 1
    before = original(images())
    torch.testing.assert_close(model(images()), before)
    changes(monkeypatch, model)[what]()
    if "object" in what:
        original.factor = model.factor
    assert not torch.allclose(original(images()), before)
    torch.testing.assert_close(model(images()), original(images()))
    if "tensor" not in what:
        fastcnn.convert(model)
        assert calls_of_fused_op(monkeypatch, lambda: model(images())) == 1
        torch.testing.assert_close(model(images()), original(images()))
    monkeypatch.undo()


def test_convert_follows_plain_values_when_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Scaled().eval()
    model = fastcnn.convert(copy.deepcopy(original))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), original(images()))
    monkeypatch.setattr(Scaled, "factor", 3.0)
    torch.testing.assert_close(compiled(images()), original(images()))
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    torch.testing.assert_close(compiled(images()), original(images()))


def test_convert_leaves_a_forward_that_writes_a_global(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SCALE", SCALE)  # for what the forward does to it

    def forward(self: Any, x: Tensor) -> Tensor:
        global SCALE
        SCALE += 1.0
        return F.relu(self.bn(x)) * SCALE

    report = plan(with_forward(forward))
    assert not report.fused
    assert report.unfused and all("writes to" in entry.reason and "SCALE" in entry.reason for entry in report.unfused)


def test_plan_leaves_the_random_states_alone() -> None:
    model = with_forward(lambda s, x: F.relu(s.bn(x)) * numpy.random.rand() * float(torch.rand(())))
    before = pickle.dumps(numpy.random.get_state(legacy=False)), torch.get_rng_state()
    assert not plan(model).fused
    assert pickle.dumps(numpy.random.get_state(legacy=False)) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
