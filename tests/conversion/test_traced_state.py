"""fastcnn.convert where a forward reads or writes what its module holds: parameters, buffers, lists and objects."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversions import calls_of_fused_op
from torch import Tensor, nn

import fastcnn
from fastcnn.conversion.plan import plan


class Holder(nn.Module):
    """A batch norm in front of a ReLU, and a little of everything."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.run = forward
        self.bn, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.gamma = nn.Parameter(torch.linspace(1, 2, 4).view(4, 1, 1))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.full((4, 1, 1), 3.0))
        self.register_buffer("enabled", torch.tensor(True))
        self.plain = torch.zeros(())
        self.features: list[Any] = []
        self.cache: dict[str, Any] = {"list": [1.0]}
        self.queue: deque[Any] = deque(maxlen=3)

    def held(self) -> list[Any]:
        """All that a forward may have written to."""
        return [dict(self.named_buffers()), self.plain, self.features, self.cache, list(self.queue)]


def model(forward: Callable[[Any, Tensor], Any]) -> Holder:
    """Each of a class of its own, whose forward is that function."""
    kind = type("Block", (Holder,), {"forward": forward})
    torch.manual_seed(0)
    made: Holder = kind(forward)
    return made


def images() -> Tensor:
    return torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(5))


def _counts(self: Any, x: Tensor) -> Tensor:
    self.steps.add_(1)
    return F.relu(self.bn(x))


def _averages(self: Any, x: Tensor) -> Tensor:
    self.mean.mul_(0.9).add_(x.mean())
    return F.relu(self.bn(x)) * self.mean


def _counts_in_training(self: Any, x: Tensor) -> Tensor:
    if self.training:
        self.steps.add_(1)
    return F.relu(self.bn(x))


def _assigns(self: Any, x: Tensor) -> Tensor:
    self.steps += 1
    return F.relu(self.bn(x))


def _assigns_anew(self: Any, x: Tensor) -> Tensor:
    self.steps = self.steps + 1
    return F.relu(self.bn(x))


def _averages_without_gradient(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        self.mean.mul_(0.9).add_(x.mean())
    return F.relu(self.bn(x))


def _writes_a_plain_tensor(self: Any, x: Tensor) -> Tensor:
    self.plain.add_(1)
    return F.relu(self.bn(x))


def _writes_among_the_buffers(self: Any, x: Tensor) -> Tensor:
    self._buffers["steps"].add_(1)
    return F.relu(self.bn(x))


def _appends(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.bn(x))
    self.features.append(y)
    return y


def _keeps(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.bn(x))
    self.cache["output"] = y
    return y


def _keeps_inside(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.bn(x))
    self.cache["list"].append(y)
    return y


def _exchanges_inside(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.bn(x))
    self.cache["list"][0] = y
    return y


def _queues(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.bn(x))
    self.queue.append(y)
    return y


WRITING = [
    *(_counts, _averages, _counts_in_training, _assigns, _assigns_anew, _averages_without_gradient),
    *(_writes_a_plain_tensor, _writes_among_the_buffers, _appends, _keeps, _keeps_inside, _exchanges_inside, _queues),
]


@pytest.mark.parametrize("forward", WRITING)
@pytest.mark.parametrize("training", [False, True])
def test_convert_goes_on_writing_what_a_forward_writes(forward: Any, training: bool) -> None:
    original = model(forward).train(training)
    converted = copy.deepcopy(original)
    before = copy.deepcopy(converted.held())
    plan(converted)
    fastcnn.convert(converted)
    torch.testing.assert_close(converted.held(), before, rtol=0, atol=0)
    for _ in range(3):
        torch.testing.assert_close(converted(images()), original(images()))
        torch.testing.assert_close(converted.held(), original.held())
    assert str(before) != str(converted.held()) or (forward is _counts_in_training and not training)
    buffers = copy.deepcopy(dict(converted.named_buffers()))
    fastcnn.explain(converted, images(), seconds=0.01)
    torch.testing.assert_close(dict(converted.named_buffers()), buffers, rtol=0, atol=0)


def _asks_a_buffer(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.bn(x)) if self.enabled else F.relu(self.bn(2 * x))


def _takes_a_number(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.bn(x)) * self.mean[0].item()


def _multiplies(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.bn(x)) * self.mean


@pytest.mark.parametrize("forward", [_asks_a_buffer, _takes_a_number, _multiplies])
def test_convert_follows_the_values_of_buffers(forward: Any) -> None:
    original = model(forward).eval()
    converted: Any = fastcnn.convert(copy.deepcopy(original))
    for one in (original, converted):
        one(images())
        one.enabled.fill_(False)
        one.mean.fill_(7.0)
    torch.testing.assert_close(converted(images()), original(images()))


def test_convert_fuses_beside_parameters_and_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    original = model(lambda self, x: self.gamma * F.relu(self.bn(x)) + self.mean).train()
    converted: Any = fastcnn.convert(copy.deepcopy(original))
    assert calls_of_fused_op(monkeypatch, lambda: converted(images())) == 1
    original(images())
    for one in (original, converted):
        one(images()).square().sum().backward()
    torch.testing.assert_close(converted.gamma.grad, original.gamma.grad)
    converted.gamma = None
    with pytest.raises(TypeError, match="NoneType"):
        converted(images())


def _scales_between(self: Any, x: Tensor) -> Tensor:
    y = self.bn(x)
    self.bn.weight.data.mul_(2)
    return F.relu(y)


def _reads_between(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = self.bn(x)
    mean = self.bn.running_mean.clone()
    return F.relu(y), mean


@pytest.mark.parametrize("forward", [_scales_between, _reads_between])
def test_convert_leaves_a_batch_norm_whose_tensors_the_forward_uses(forward: Any) -> None:
    original = model(forward).train()
    converted = fastcnn.convert(copy.deepcopy(original))
    (unfused,) = plan(converted).unfused
    assert "looks at the batch norm's tensors" in unfused.reason
    for _ in range(2):
        torch.testing.assert_close(converted(images()), original(images()))


def test_convert_again_forgets_a_pattern_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = [True]

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.bn(x)
        return F.relu(y) if self.chosen() else F.gelu(y)

    original = model(forward).eval()
    type(original).chosen = lambda self: choice[0]
    converted = fastcnn.convert(copy.deepcopy(original))
    assert calls_of_fused_op(monkeypatch, lambda: converted(images())) == 1
    choice[0] = False
    fastcnn.convert(converted)
    assert not plan(converted).fused
    torch.testing.assert_close(converted(images()), original(images()))


@pytest.mark.parametrize("word", ["class", "in", "lambda"])
def test_convert_leaves_a_forward_whose_layers_have_names_of_python(word: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        heads: Any = self.heads
        return heads[word](F.relu(self.bn(x)))  # type: ignore[no-any-return]

    original = model(forward).eval()
    original.heads = nn.ModuleDict({word: nn.Conv2d(4, 4, 1)})
    converted = fastcnn.convert(copy.deepcopy(original))
    assert "cannot be written as Python" in plan(converted).unfused[0].reason
    torch.testing.assert_close(converted(images()), original(images()))


@pytest.mark.parametrize("activation", ["relu", "gelu", nn.GELU()])
def test_convert_leaves_an_activation_that_is_the_models_own_to_the_model(activation: Any) -> None:
    conv: Any = nn.Conv2d(4, 4, 1)
    conv.activation = activation
    expected = conv(images())
    torch.testing.assert_close(fastcnn.convert(conv)(images()), expected)
    assert conv.activation is activation
    assert all(not row.mismatch for row in fastcnn.explain(conv, images(), seconds=0.01).rows)
    torch.testing.assert_close(fastcnn.revert(conv)(images()), expected, rtol=0, atol=0)


def test_convert_does_not_announce_its_classes() -> None:
    names: list[str] = []

    class Registered(nn.Module):
        def __init_subclass__(cls) -> None:
            assert cls.__name__ not in names, f"{cls.__name__} is registered twice"
            names.append(cls.__name__)

    class Block(Registered):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.bn(x))

    class Conv(Registered, nn.Conv2d):
        pass

    net = nn.Sequential(Block(), Conv(4, 4, 1)).eval()
    expected = net(images())
    fastcnn.convert(net)
    assert names == ["Block", "Conv"]
    assert [entry.name for entry in plan(net).fused] == ["0.bn"]
    torch.testing.assert_close(net(images()), expected)


def test_convert_runs_a_sequential_in_its_own_order() -> None:
    class Backwards(nn.Sequential):
        def __iter__(self) -> Any:
            return reversed(self._modules.values())

    net = Backwards(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    expected = net(images())
    torch.testing.assert_close(fastcnn.convert(net)(images()), expected)


def test_parts_of_a_converted_sequential_convert_and_revert() -> None:
    class Own(nn.Sequential):
        pass

    for kind in (nn.Sequential, Own):
        net = kind(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
        expected = net[:3](images())
        part = fastcnn.convert(net)[:3]
        made = type(part)
        torch.testing.assert_close(part(images()), expected)
        assert type(fastcnn.convert(part)) is made
        assert [type(module) for module in fastcnn.revert(part).modules()] == [kind, nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
        torch.testing.assert_close(part(images()), expected)
