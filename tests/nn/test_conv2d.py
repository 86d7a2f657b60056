from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from conditions import relative_error
from torch import nn
from torch.nn.utils import parametrizations, prune

import fastcnn

LAYERS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "plain": ((3, 8, 3), {}),
    "options": ((4, 8, (3, 2)), dict(stride=2, padding=(1, 0), dilation=2, groups=2, bias=False)),
    "one channel": ((1, 6, 5), dict(padding=2)),
    "same": ((3, 4, 4), dict(padding="same")),
    "reflect": ((3, 4, 3), dict(padding=1, padding_mode="reflect")),
    "circular": ((3, 4, 3), dict(padding=(2, 1), padding_mode="circular")),
    "replicate": ((3, 4, 3), dict(padding="same", padding_mode="replicate")),
    "float64": ((3, 4, 3), dict(dtype=torch.float64)),
}


def twins(name: str) -> tuple[fastcnn.Conv2d, nn.Conv2d]:
    args, kwargs = LAYERS[name]
    torch.manual_seed(5)
    ours = fastcnn.Conv2d(*args, **kwargs)
    torch.manual_seed(5)
    return ours, nn.Conv2d(*args, **kwargs)


@pytest.mark.parametrize("name", LAYERS)
def test_conv2d_module_equals_torchs(name: str) -> None:
    ours, theirs = twins(name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), "initial weights come from torch's random stream in torch's order"
    input = torch.randn(2, theirs.in_channels, 11, 10, dtype=theirs.weight.dtype)
    exact = copy.deepcopy(theirs).double()(input.double())
    assert relative_error(ours(input), exact) < (1e-5 if theirs.weight.dtype == torch.float32 else 1e-12)
    assert relative_error(ours(input[0]), exact[0]) < 1e-5
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("name", LAYERS)
def test_conv2d_module_weight_is_channels_last(name: str) -> None:
    layer, _ = twins(name)
    _, c, h, w = layer.weight.shape
    assert layer.weight.stride() == (h * w * c, 1, w * c, c)
    other = copy.deepcopy(layer)
    other.load_state_dict(layer.state_dict())
    assert other.weight.stride() == layer.weight.stride()
    assert layer(torch.randn(2, c * layer.groups, 9, 9, dtype=layer.weight.dtype)).is_contiguous(
        memory_format=torch.channels_last
    )


def test_conv2d_module_activation() -> None:
    torch.manual_seed(0)
    layer = fastcnn.Conv2d(3, 8, 3, activation="relu")
    input = torch.randn(2, 3, 8, 8)
    assert torch.equal(layer(input), torch.relu(fastcnn.ops.conv2d(input, layer.weight, layer.bias)))
    assert "activation='relu'" in repr(layer)
    assert "activation" not in repr(fastcnn.Conv2d(3, 8, 3))
    with pytest.raises(ValueError, match="'tanh'"):
        fastcnn.Conv2d(3, 8, 3, activation="tanh")


def test_conv2d_module_survives_copy_pickle_and_conversion() -> None:
    layer = fastcnn.Conv2d(3, 8, 3, activation="relu")
    input = torch.randn(2, 3, 8, 8)
    expected = layer(input)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(input), expected)
        assert other.weight.stride() == layer.weight.stride()
    double = copy.deepcopy(layer).double()
    assert double(input.double()).dtype == torch.float64
    assert double.weight.stride() == layer.weight.stride()
    contiguous = copy.deepcopy(layer).to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(contiguous(input), expected)
    assert fastcnn.Conv2d(3, 8, 3, device="meta")(input.to("meta")).shape == expected.shape


def test_conv2d_module_hooks_see_input_and_output() -> None:
    layer = fastcnn.Conv2d(3, 8, 3)
    seen: list[Any] = []
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    layer.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(grad_out[0].shape))
    layer(torch.randn(2, 3, 8, 8, requires_grad=True)).sum().backward()
    assert seen == [(2, 3, 8, 8), (2, 8, 6, 6), (2, 8, 6, 6)]


@pytest.mark.parametrize("change", ["weight_norm", "spectral_norm", "prune", "old_weight_norm"])
def test_conv2d_module_takes_parametrizations_and_pruning(change: str) -> None:
    ours, theirs = twins("plain")
    for layer in (ours, theirs):
        torch.manual_seed(1)
        if change == "weight_norm":
            parametrizations.weight_norm(layer)
        elif change == "spectral_norm":
            parametrizations.spectral_norm(layer)
        elif change == "prune":
            prune.random_unstructured(layer, "weight", amount=0.5)
        else:
            with pytest.warns(FutureWarning):
                nn.utils.weight_norm(layer)
    input = torch.randn(2, 3, 8, 8)
    torch.manual_seed(2)
    wanted = theirs(input)
    torch.manual_seed(2)
    torch.testing.assert_close(ours(input), wanted, rtol=1e-4, atol=1e-5)
    ours(input).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


def test_conv2d_module_trains_through_data_writes() -> None:
    layer = fastcnn.Conv2d(3, 8, 3)
    input = torch.randn(2, 3, 8, 8)
    layer(input)
    layer.weight.data.zero_()
    layer.bias.data.fill_(2)  # type: ignore[union-attr]
    assert torch.equal(layer(input), torch.full((2, 8, 6, 6), 2.0))
