"""fastcnn.convert where a forward views what layers return, as it may while images are NCHW."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversions import state_of, trace_of
from torch import Tensor, nn

import fastcnn
from fastcnn.explanation.measure import measure_layers


class Tutorial(nn.Module):
    """Layers, and a view of the last one's maps in front of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.norm = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 3), nn.BatchNorm2d(16)
        self.pool, self.drop = nn.MaxPool2d(2, 2), nn.Dropout(0.0)
        self.fc = nn.Linear(16 * 5 * 5, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.drop(self.pool(F.relu(self.norm(self.conv2(x)))))
        x = x.view(x.size(0), -1)
        return self.fc(x)  # type: ignore[no-any-return]


class View(nn.Module):
    """A view as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1)


class Layers(nn.Module):
    """A convolution and a linear layer for a forward of a test's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)


def images() -> Tensor:
    return torch.randn(2, 3, 30, 30, generator=torch.Generator().manual_seed(5))


def features(model: Tutorial) -> nn.Module:
    return nn.Sequential(nn.Sequential(model.conv1, nn.ReLU(), model.pool), View(), nn.Linear(6 * 13 * 13, 5))


class Head(nn.Module):
    """A view in a module with layers, of what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8 * 28 * 28, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(x.size(0), -1))  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "forward": Tutorial,
    "module": lambda: features(Tutorial()),
    "head": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Head()),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_converted_models_view_images(name: str, training: bool) -> None:
    model = MODELS[name]().train(training)
    expected = copy.deepcopy(model).double()(images().double())
    state, before = state_of(model), trace_of(model)
    fastcnn.convert(model)
    assert state_of(model) == state
    for layout in (torch.contiguous_format, torch.channels_last):
        for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            one.train(training)
            torch.testing.assert_close(one(images().to(memory_format=layout)).double(), expected, rtol=1e-4, atol=1e-5)
    model(images()).sum().backward()
    fastcnn.revert(model)
    assert trace_of(model) == before


def test_view_follows_changes_of_the_model() -> None:
    model = fastcnn.convert(Tutorial().eval())
    calls: list[int] = []
    model.get_submodule("drop").register_forward_hook(lambda *_: calls.append(1))
    model(images())
    assert calls == [1]
    model.pool = nn.MaxPool2d(3, 2)
    model.fc = nn.Linear(16 * 4 * 4, 10)
    assert model(torch.randn(2, 3, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", MODELS)
def test_models_that_view_images_are_measured(name: str) -> None:
    model = MODELS[name]().eval()
    expected = model(images())
    assert any(row.measured for row in measure_layers(model, images(), seconds=0.01))
    assert "total" in str(fastcnn.explain(model, images(), seconds=0.01))
    fastcnn.convert(model, images())
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-5)


def _linear(self: Any, x: Tensor) -> Tensor:
    return self.linear(x[:, 0, :8, :8].reshape(-1, 8)).view(2, 8, 8)  # type: ignore[no-any-return]


def _dtype(self: Any, x: Tensor) -> Tensor:
    return self.conv(x).view(torch.int32).view(torch.float32)  # type: ignore[no-any-return]


def _split(self: Any, x: Tensor) -> Tensor:
    return self.conv(x).view(2, 2, 4, 28, 28)  # type: ignore[no-any-return]


def _tuple(self: Any, x: Tensor) -> Tensor:
    return torch.sigmoid(self.conv(x)).view((2, -1))


def _list(self: Any, x: Tensor) -> Tensor:
    return torch.cat([self.conv(x), self.conv(x)], 1).view(2, -1)


def _number(self: Any, x: Tensor) -> Tensor:
    return (2 * self.conv(x)).view(2, -1)


def _parameter(self: Any, x: Tensor) -> Tensor:
    return (self.linear.weight[0, 0] * self.conv(x)).view(2, -1)


@pytest.mark.parametrize("function", [_linear, _dtype, _split, _tuple, _list, _number, _parameter])
def test_other_views_give_what_they_gave(function: Callable[..., Any]) -> None:
    class Block(Layers):
        forward = function

    model = Block().eval()
    expected = model(images())
    torch.testing.assert_close(fastcnn.convert(model)(images()), expected, rtol=1e-4, atol=1e-5)


def test_views_in_functions_and_methods_go_on_working() -> None:
    class Block(Layers):
        def flat(self, x: Tensor) -> Tensor:
            return x.view(x.size()[0], -1)

        def forward(self, x: Tensor) -> Tensor:
            return self.flat(self.conv(x)) + x.size(0) * self.flat(F.relu(self.conv(x)))

    model = Block().eval()
    expected = model(images())
    torch.testing.assert_close(fastcnn.convert(model)(images()), expected, rtol=1e-4, atol=1e-5)


def test_views_by_keyword_are_measured() -> None:
    class Block(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).view(dtype=torch.int32).view(size=(2, 2, 4, 28, 28))  # type: ignore[no-any-return]

    model = Block().eval()
    assert any(row.measured for row in measure_layers(model, images(), seconds=0.01))


def test_view_that_is_written_to_stays_a_view() -> None:
    """A copy would hide what is written from the sum: torch's error instead of a wrong number."""

    class Block(Layers):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y.view(2, -1).zero_()
            return y.sum()  # type: ignore[no-any-return]

    model = fastcnn.convert(Block().eval())
    with torch.no_grad(), pytest.raises(RuntimeError, match="view size is not compatible"):
        model(images())
