from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcnn
from fastcnn.nn.batch_norm import SyncBatchNormReLU2d

LAYERS: dict[str, tuple[type[nn.Module], type[nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d": (fastcnn.BatchNorm1d, nn.BatchNorm1d, (5, 7)),
    "BatchNorm1d of sequences": (fastcnn.BatchNorm1d, nn.BatchNorm1d, (4, 7, 6)),
    "BatchNorm2d": (fastcnn.BatchNorm2d, nn.BatchNorm2d, (3, 7, 5, 4)),
    "BatchNormReLU2d": (fastcnn.BatchNormReLU2d, nn.BatchNorm2d, (3, 7, 5, 4)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "cumulative": dict(momentum=None),
    "momentum": dict(momentum=0.3, eps=1e-3),
    "no affine": dict(affine=False),
    "no bias": dict(bias=False),
    "no running statistics": dict(track_running_stats=False),
    "neither": dict(affine=False, track_running_stats=False),
    "float64": dict(dtype=torch.float64),
}


def twins(name: str, options: str = "default") -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """Our layer and torch's with the same state, and an input's shape."""
    ours, theirs, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, twin = ours(shape[1], **OPTIONS[options]), theirs(shape[1], **OPTIONS[options])
    for p in twin.parameters():
        nn.init.normal_(p)
    layer.load_state_dict(twin.state_dict())
    return layer, twin, shape


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_batch_norm_module_trains_and_evaluates_as_torchs(name: str, options: str) -> None:
    ours, theirs, shape = twins(name, options)
    assert repr(ours) == repr(theirs).replace("BatchNorm2d", type(ours).__name__)
    relu = F.relu if name == "BatchNormReLU2d" else lambda t: t
    for step in range(5):
        ours.train(step < 3)
        theirs.train(step < 3)
        input = torch.randn(shape, dtype=OPTIONS[options].get("dtype")).requires_grad_()
        grad_output = torch.randn_like(input)
        results = []
        for layer, activation in ((ours, lambda t: t), (theirs, relu)):
            output = activation(layer(input))
            results.append((output, *torch.autograd.grad(output, (input, *layer.parameters()), grad_output)))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
        state, wanted = ours.state_dict(), theirs.state_dict()
        assert list(state) == list(wanted)
        torch.testing.assert_close(state, wanted)
    theirs.load_state_dict(ours.state_dict())


def test_batch_norm_relu_module_adds_the_residual() -> None:
    ours, theirs, shape = twins("BatchNormReLU2d")
    input, residual = torch.randn(shape), torch.randn(shape)
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        torch.testing.assert_close(ours(input, residual), F.relu(theirs(input) + residual))


def test_batch_norm_module_with_statistics_removed_by_hand() -> None:
    ours, theirs, shape = twins("BatchNorm2d")
    for layer in (ours, theirs):
        layer.running_mean = layer.running_var = None
        layer.eval()
    input = torch.randn(shape)
    torch.testing.assert_close(ours(input), theirs(input))


@pytest.mark.parametrize("name", LAYERS)
def test_batch_norm_module_refuses_other_ranks(name: str) -> None:
    ours, theirs, shape = twins(name)
    bad = torch.randn(*shape, 2, 2)
    with pytest.raises(ValueError, match="expected") as wanted:
        theirs(bad)
    with pytest.raises(ValueError, match="expected") as got:
        ours(bad)
    assert str(got.value) == str(wanted.value)
    assert ours.num_batches_tracked == 0


@pytest.mark.parametrize("name", LAYERS)
def test_batch_norm_module_survives_copy_pickle_and_conversion(name: str) -> None:
    layer, _, shape = twins(name)
    input = torch.randn(shape)
    layer(input)
    layer.eval()
    expected = layer(input)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert type(other) is type(layer)
        assert torch.equal(other(input), expected)
    torch.testing.assert_close(copy.deepcopy(layer).double()(input.double()).float(), expected)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.num_batches_tracked.dtype == torch.int64
    torch.testing.assert_close(half(input.bfloat16()).float(), expected, rtol=0.05, atol=0.05)
    meta = type(layer)(shape[1], device="meta")
    assert meta(input.to("meta")).shape == expected.shape
    if len(shape) == 4:
        assert layer(input.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


def test_batch_norm_module_hooks_see_input_and_output() -> None:
    layer = fastcnn.BatchNormReLU2d(3)
    seen: list[Any] = []
    layer.register_forward_pre_hook(lambda module, args: seen.append(len(args)))
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    layer.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(grad_out[0].shape))
    input = torch.randn(2, 3, 8, 8, requires_grad=True)
    layer(input, input).sum().backward()
    assert seen == [2, (2, 3, 8, 8), (2, 3, 8, 8)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(fastcnn.BatchNorm2d(3), nn.Sequential(fastcnn.BatchNormReLU2d(3, momentum=0.4)))
    return nn.Sequential(block, fastcnn.BatchNormReLU2d(3, affine=False), nn.Flatten(), fastcnn.BatchNorm1d(48))


def test_torchs_sync_batch_norm_conversion_refuses_to_drop_the_relu() -> None:
    for module in (
        network(),
        fastcnn.BatchNormReLU2d(3),
        fastcnn.nn.convert_sync_batchnorm(fastcnn.BatchNormReLU2d(3)),
    ):
        with pytest.raises(NotImplementedError, match=r"fastcnn\.nn\.convert_sync_batchnorm"):
            nn.SyncBatchNorm.convert_sync_batchnorm(module)
    # Without a ReLU torch's conversion loses nothing.
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(fastcnn.BatchNorm2d(3))) is nn.SyncBatchNorm


def test_sync_batch_norm_conversion_keeps_relu_state_and_mode() -> None:
    model = network()
    input = torch.randn(6, 3, 4, 4)
    model(input)
    twin = copy.deepcopy(model)
    parameters = list(model.parameters())
    converted = fastcnn.nn.convert_sync_batchnorm(model)
    assert converted is model
    kinds = [type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert kinds == [nn.SyncBatchNorm, SyncBatchNormReLU2d, SyncBatchNormReLU2d, nn.SyncBatchNorm]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(twin.state_dict())
    twin.load_state_dict(model.state_dict())
    for training in (True, False):
        model.train(training)
        twin.train(training)
        torch.testing.assert_close(model(input), twin(input), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.state_dict(), twin.state_dict())


def test_sync_batch_norm_relu_adds_the_residual_and_converts_again() -> None:
    layer = fastcnn.BatchNormReLU2d(3).eval()
    sync = fastcnn.nn.convert_sync_batchnorm(copy.deepcopy(layer))
    assert not sync.training
    input, residual = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(sync(input, residual), layer(input, residual))
    again = fastcnn.nn.convert_sync_batchnorm(sync)
    assert type(again) is SyncBatchNormReLU2d
    assert torch.equal(again(input, residual), sync(input, residual))


def test_batch_norm_module_compiles_and_counts() -> None:
    layer = fastcnn.BatchNormReLU2d(4)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def step(module: Any, input: Tensor) -> Tensor:
        module.zero_grad()
        module(input).square().sum().backward()
        return module.weight.grad

    for _ in range(2):
        input = torch.randn(3, 4, 5, 5)
        torch.testing.assert_close(step(compiled, input), step(twin, input))
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())
    assert layer.num_batches_tracked == 2
