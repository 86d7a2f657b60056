from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import fastcnn

LAYERS: dict[str, tuple[type[nn.Module], type[nn.Module], tuple[Any, ...], dict[str, Any]]] = {
    "max": (fastcnn.MaxPool2d, nn.MaxPool2d, (3,), dict(stride=2, padding=1)),
    "max, stride left out": (fastcnn.MaxPool2d, nn.MaxPool2d, (2,), {}),
    "max, every option": (
        fastcnn.MaxPool2d,
        nn.MaxPool2d,
        ((3, 2), (2, 1), (1, 0), (1, 2), True, True),
        {},
    ),
    "average": (fastcnn.AvgPool2d, nn.AvgPool2d, (2,), dict(stride=2)),
    "average, every option": (fastcnn.AvgPool2d, nn.AvgPool2d, ((3, 2), (2, 1), (1, 0), True, False, 5), {}),
    "adaptive": (fastcnn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d, ((None, 3),), {}),
    "adaptive, global": (fastcnn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d, (1,), {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_pooling_module_equals_torchs(name: str) -> None:
    kind, torch_kind, args, kwargs = LAYERS[name]
    ours, theirs = kind(*args, **kwargs), torch_kind(*args, **kwargs)
    assert isinstance(ours, torch_kind) and repr(ours) == repr(theirs)
    input = torch.randn(2, 5, 9, 8).to(memory_format=torch.channels_last)
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        for x in (input, input[0], input.double(), input.bfloat16()):
            torch.testing.assert_close(module(x), theirs(x))


def test_global_avg_pool2d_is_the_mean_of_each_channel() -> None:
    layer = fastcnn.GlobalAvgPool2d()
    assert repr(layer) == "GlobalAvgPool2d()"
    assert isinstance(layer, nn.AdaptiveAvgPool2d)
    input = torch.randn(2, 5, 9, 8)
    assert layer(input).shape == (2, 5, 1, 1)
    torch.testing.assert_close(layer(input), input.mean((2, 3), keepdim=True))
    torch.testing.assert_close(copy.deepcopy(layer)(input[0]), nn.AdaptiveAvgPool2d(1)(input[0]))


@pytest.mark.parametrize("name", LAYERS)
def test_pooling_module_keeps_channels_last_both_ways(name: str) -> None:
    kind, _, args, kwargs = LAYERS[name]
    input = torch.randn(2, 5, 9, 8).to(memory_format=torch.channels_last).requires_grad_()
    output = kind(*args, **kwargs)(input)
    output = output[0] if isinstance(output, tuple) else output
    assert output.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(output.sum(), input)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
