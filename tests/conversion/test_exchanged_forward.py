"""fastcnn.convert: a class whose forward is exchanged after the conversion runs the new one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversions import calls_of_fused_op, trace_of
from torch import Tensor, nn

import fastcnn
from fastcnn.conversion.plan import plan


class Block(nn.Module):
    """Its forward is rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(x) + x)


class Inherits(Block):
    """Its forward is its base's."""


class Chain(nn.Sequential):
    """A Sequential with a name of its own."""


class Conv(nn.Conv2d):
    """A layer with a name of its own."""


class Norm(nn.BatchNorm2d):
    """Another, which is fused where it is in a Sequential."""


def of_block(self: Any, x: Tensor) -> Tensor:
    return self.relu(self.bn(x) - x)


def doubled(of: type[nn.Module]) -> Callable[..., Tensor]:
    before: Any = of.forward
    return lambda self, x: before(self, x) * 2


MODELS: dict[str, Callable[[], nn.Module]] = {
    "block": Block,
    "inherited": lambda: nn.Sequential(Inherits()),
    "Sequential": lambda: Chain(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()),
    "layer": lambda: nn.Sequential(Conv(4, 4, 1), nn.ReLU()),
    "fused layer": lambda: nn.Sequential(Norm(4), nn.ReLU()),
}
CHANGED: dict[str, type[nn.Module]] = {
    "block": Block,
    "inherited": Block,
    "Sequential": Chain,
    "layer": Conv,
    "fused layer": Norm,
}


def images() -> Tensor:
    return torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("when", ["", "copied after", "copied before", "pickled after", "pickled before"])
@pytest.mark.parametrize("name", MODELS)
def test_convert_follows_an_exchanged_forward(name: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MODELS[name]().eval()
    copied = copy.deepcopy if "copied" in when else lambda m: pickle.loads(pickle.dumps(m)) if when else m
    model = fastcnn.convert(copy.deepcopy(original))
    if "before" in when:
        model = copied(model)
    before, expected, cls = original(images()), len(plan(model).fused), CHANGED[name]
    fused = calls_of_fused_op(monkeypatch, lambda: model(images()))
    assert fused == expected == (0 if name == "layer" else 1)
    with monkeypatch.context() as patch:
        patch.setattr(cls, "forward", of_block if cls is Block else doubled(cls))
        if "after" in when:
            model = copied(model)
        assert not torch.allclose(original(images()), before)
        torch.testing.assert_close(model(images()), original(images()))
        again = fastcnn.convert(copy.deepcopy(model))
        torch.testing.assert_close(again(images()), original(images()))
        assert trace_of(fastcnn.revert(again)) == trace_of(original)
    if when != "":  # what a copy stands for may be the exchanged one
        fastcnn.convert(model)
    torch.testing.assert_close(model(images()), before)
    assert calls_of_fused_op(monkeypatch, lambda: model(images())) == fused
    assert trace_of(fastcnn.revert(model)) == trace_of(original)


def test_convert_after_the_exchange_fuses_the_new_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.relu(self.bn(x) + 2 * x)

    model, original = fastcnn.convert(Block().eval()), Block().eval()
    monkeypatch.setattr(Block, "forward", forward)
    assert calls_of_fused_op(monkeypatch, lambda: model(images())) == 0
    fastcnn.convert(model)
    assert calls_of_fused_op(monkeypatch, lambda: model(images())) == 1
    torch.testing.assert_close(model(images()), original(images()))


@pytest.mark.parametrize("name", MODELS)
def test_convert_follows_an_exchanged_forward_when_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MODELS[name]().eval()
    model = fastcnn.convert(copy.deepcopy(original))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), original(images()))
    cls = CHANGED[name]
    monkeypatch.setattr(cls, "forward", of_block if cls is Block else doubled(cls))
    torch.testing.assert_close(compiled(images()), original(images()))
