"""fastcnn.convert: errors on the way, and what else holds a model's weights or runs its modules."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conversions import state_of, trace_of
from torch import Tensor, nn

import fastcnn
from fastcnn.conversion import layers
from fastcnn.conversion.plan import plan


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False))


def images() -> Tensor:
    return torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    "example", [torch.randn(2, 4, 9, 9), 3, {"nothing": torch.randn(1)}], ids=["shape", "int", "name"]
)
def test_convert_leaves_a_model_that_raises_on_its_example(example: object) -> None:
    model = network()
    state, before = state_of(model), trace_of(model)
    with pytest.raises((RuntimeError, TypeError)):
        fastcnn.convert(model, example)
    assert state_of(model) == state
    assert trace_of(model) == before


def test_convert_interrupted_leaves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, change = network(), layers.change

    def interrupted(module: nn.Module, *args: object) -> None:
        if isinstance(module, nn.BatchNorm2d):
            raise KeyboardInterrupt
        change(module, *args)

    before = trace_of(model)
    monkeypatch.setattr(layers, "change", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fastcnn.convert(model)
    assert trace_of(model) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_convert_sequential_with_a_scripted_module() -> None:
    model = network().eval()
    model.append(torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()).eval()))
    expected = model(images())
    fastcnn.convert(model)
    assert [entry.name for entry in plan(model).fused] == ["1"]
    torch.testing.assert_close(model(images()), expected)


def test_convert_again_lays_out_weights_that_were_assigned() -> None:
    model = fastcnn.convert(network())
    model.load_state_dict(network().state_dict(), assign=True)
    assert not model[3].weight.is_contiguous(memory_format=torch.channels_last)
    fastcnn.convert(model)
    assert model[3].weight.is_contiguous(memory_format=torch.channels_last)
    fastcnn.revert(model)
    assert model[3].weight.is_contiguous()


def test_convert_lays_out_gradients_as_their_weights() -> None:
    """torch's fused optimizers read weights and gradients in the order of memory."""
    model, original = network(), network()
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, fused=True) for m in (model, original)]
    for when in range(3):
        for m in (model, original):
            m(images()).square().mean().backward()  # the gradients add up
        if when < 2:
            (fastcnn.convert, fastcnn.revert)[when](model)
        assert [p.grad.stride() for p in model.parameters()] == [p.stride() for p in model.parameters()]
        for optimizer in optimizers:
            optimizer.step()
        for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class Block(nn.Module):
    """Its forward is rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.relu = nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(x) + x)


class Negated(Block):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class NegatedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def test_convert_leaves_a_bound_forward_that_works_after_revert() -> None:
    model, x = fastcnn.convert(Block().eval()), images()
    expected, bound = model(x), model.forward
    model.forward = lambda x: bound(x) * 2  # type: ignore[method-assign]
    torch.testing.assert_close(model(x), expected * 2)
    torch.testing.assert_close(fastcnn.revert(model)(x), expected * 2)


def test_convert_leaves_a_class_that_makes_objects() -> None:
    model, x = fastcnn.convert(Block()), images()
    torch.testing.assert_close(type(model)()(x), Block()(x))


@pytest.mark.parametrize(("make", "other"), [(Block, Negated), (lambda: nn.Conv2d(3, 4, 1), NegatedConv)])
def test_revert_leaves_a_class_that_others_gave(make: Callable[[], nn.Module], other: type[nn.Module]) -> None:
    model, x = make().eval(), images()
    expected = -model(x)
    fastcnn.convert(model)
    model.__class__ = other
    torch.testing.assert_close(model(x), expected)
    for change in (fastcnn.revert, fastcnn.convert, fastcnn.convert, fastcnn.revert):
        torch.testing.assert_close(change(model)(x), expected)
    assert type(model) is other


def test_convert_in_inference_mode_leaves_weights_that_train() -> None:
    model, original = network(), network()
    for change in (fastcnn.convert, fastcnn.revert):
        with torch.inference_mode():
            change(model)
        for m in (model, original):
            m.zero_grad()
            m(images()).square().mean().backward()
        torch.testing.assert_close(model[0].weight.grad, original[0].weight.grad, rtol=1e-4, atol=1e-5)


def test_plan_lists_a_decorated_forward() -> None:
    class Decorated(Block):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.bn(x))

    model = Decorated()
    model.relu = nn.Identity()
    (entry,) = plan(model).unfused
    assert entry.name == "bn" and "calls" in entry.reason
    assert not fastcnn.convert(model)(images()).requires_grad


def test_plan_says_why_a_graph_module_is_not_fused() -> None:
    report = plan(torch.fx.symbolic_trace(copy.deepcopy(network())))
    assert "cannot be stood for" in report.unfused[0].reason and "__new__" in report.unfused[0].reason
