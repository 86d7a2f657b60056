"""What the networks compute: against the same network on torch.nn, in float64 and float32, without any fallback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gpu
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcnn import backends
from fastcnn.models.layers import ChannelsLastFlatten


@pytest.fixture(autouse=True)
def no_fallback() -> Iterator[None]:
    with backends.fallback(False):
        yield


# What a network decided: for each call of a ReLU, or of the nn.Identity in its place, which values were let through;
# for each max pooling, where in the image the largest values were.
Decisions = dict[tuple[str, int], Tensor]


@dataclass(frozen=True)
class Step:
    """What one training step, and an evaluation after it, computed."""

    values: dict[str, Tensor]
    decisions: Decisions


def train_step(network: nn.Module, images: Tensor, decisions: Decisions | None = None) -> Step:
    """One forward and backward; with `decisions`, those are taken instead of the network's own.

    A weight's gradient jumps where a value passes 0 before a ReLU, or two values under a max pooling change order.
    Among a million values some are so near to that point that float32's rounding decides. So the truth for a float32
    network is what float64 computes after the same decisions.
    """
    made: Decisions = {}
    calls: dict[str, int] = {}

    def decide(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        call = calls[name] = calls.get(name, -1) + 1
        key = (name, call)
        if isinstance(module, nn.MaxPool2d):
            window = (module.kernel_size, module.stride, module.padding)
            made[key] = F.max_pool2d(args[0].detach().contiguous(), *window, return_indices=True)[1]
            if decisions is not None:
                return args[0].flatten(2).gather(2, decisions[key].flatten(2)).view_as(output)
        else:
            made[key] = output.detach() > 0
            if decisions is not None:
                return args[0] * decisions[key]
        return None

    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: decide(name, module, args, output))
        for name, module in network.named_modules()
        if isinstance(module, (nn.ReLU, nn.Identity, nn.MaxPool2d))
    ]
    images = images.clone().requires_grad_()
    output = network(images)
    F.cross_entropy(output, torch.arange(len(images), device=images.device) % 10).backward()
    for handle in handles:
        handle.remove()

    assert images.grad is not None
    values = {"output": output.detach(), "gradient of the image": images.grad}
    for name, module in network.named_modules():
        # One vector for weight and bias together: a bias before a BatchNorm has a gradient of 0 but for rounding,
        # which says nothing relative to itself.
        gradients = [parameter.grad.flatten() for parameter in module.parameters(recurse=False)]
        if gradients:
            values[f"gradient of {name}"] = torch.cat(gradients)
    values.update((f"buffer {name}", buffer.clone()) for name, buffer in network.named_buffers())
    with torch.no_grad():
        values["output in evaluation"] = network.eval()(images)
    return Step(values, made)


def same_decisions(left: Decisions, right: Decisions) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def relative_error(value: Tensor, truth: Tensor) -> float:
    difference = (value.double() - truth).norm()
    return float(difference / truth.norm()) if difference > 0 else 0.0


# How far a network's error may lie above torch's own: Winograd's sums round some 3 times as much as direct ones, and
# layers amplify that.
TIMES_TORCHS_ERROR = {"direct": 3.0, "winograd": 8.0}
# What is allowed anyway, as torch's error depends on the machine: for Winograd's algorithm a layer's bound by
# docs/numerics.md.
ALLOWED_ERROR = {"direct": 1e-6, "winograd": 1e-5}


@pytest.fixture(params=TIMES_TORCHS_ERROR)
def error_bound(request: pytest.FixtureRequest) -> Iterator[Callable[[float], float]]:
    """Runs a test without and with Winograd's algorithm; gives the bound of an error where torch's is the argument."""
    with backends.winograd(request.param == "winograd"):
        yield lambda torchs: max(TIMES_TORCHS_ERROR[request.param] * torchs, ALLOWED_ERROR[request.param])


@pytest.fixture
def exact_float32() -> Iterator[None]:
    with gpu.tf32(False):
        yield


def check_as_close_as_torch(case: Any, images: Tensor, error_bound: Callable[[float], float], **arguments: Any) -> Step:
    """Compares float32 networks with float64, where the images are; returns torch's float64 step."""

    def build(layers: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        network: nn.Module = case.build(layers, dtype, **arguments).to(images.device)
        return network

    free = train_step(build("torch", torch.float64), images.double())
    errors = {}
    for layers in ("fastcnn", "torch"):
        step = train_step(build(layers), images)
        truth = free
        if not same_decisions(step.decisions, free.decisions):
            assert step.decisions.keys() == free.decisions.keys()
            for key, decided in step.decisions.items():
                assert (decided != free.decisions[key]).double().mean() < 1e-3, key
            truth = train_step(build("torch", torch.float64), images.double(), step.decisions)
        assert step.values.keys() == truth.values.keys()
        errors[layers] = {name: relative_error(value, truth.values[name]) for name, value in step.values.items()}
    for name, error in errors["fastcnn"].items():
        assert error <= error_bound(errors["torch"][name]), name
    return free


@pytest.mark.parametrize("device", gpu.DEVICES)
def test_network_values_and_gradients_as_torch(
    case: Any, error_bound: Callable[[float], float], device: str, exact_float32: None
) -> None:
    images = case.images().to(device)
    truth = check_as_close_as_torch(case, images, error_bound)
    # In float64 the two differ by the order of their sums only: some 2e-16, which the layers amplify by less than 1e5.
    fast = train_step(case.build("fastcnn", torch.float64).to(device), images.double())
    for name, value in fast.values.items():
        assert value.dtype == truth.values[name].dtype
        assert relative_error(value, truth.values[name]) <= 1e-11, name


@pytest.mark.parametrize("device", gpu.DEVICES)
def test_network_values_with_three_channels_and_a_thousand_classes(
    case: Any, error_bound: Callable[[float], float], device: str, exact_float32: None
) -> None:
    images = case.images(channels=3, small=True).to(device)
    truth = check_as_close_as_torch(case, images, error_bound, in_channels=3, num_classes=1000)
    assert truth.values["output"].shape == (2, 1000)


def test_network_under_autocast_as_close_to_float32_as_torch(case: Any) -> None:
    images = case.images(small=True)
    truth = train_step(case.build("torch"), images).values
    errors = {}
    for layers in ("fastcnn", "torch"):
        with torch.autocast("cpu", torch.bfloat16):
            values = train_step(case.build(layers), images).values
        assert values["output"].dtype == torch.bfloat16
        errors[layers] = {name: relative_error(value, truth[name].double()) for name, value in values.items()}
    for name in ("output", "output in evaluation", "gradient of the image"):
        assert errors["fastcnn"][name] <= max(3 * errors["torch"][name], 2**-8), name


def test_network_takes_an_empty_batch_in_evaluation(case: Any) -> None:
    assert case.build("fastcnn").eval()(case.images(0)).shape == (0, 10)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the channels lie next to each other, then columns, rows, images; sizes of 1 have no say.

    Unlike is_contiguous(memory_format=channels_last), true for some of the channels of such a tensor too: that is
    what the gradient of a concatenation's part is.
    """
    order = [dim for dim in (1, 3, 2, 0) if tensor.shape[dim] > 1]
    strides = [tensor.stride(dim) for dim in order]
    packed = tensor.shape[1] == 1 or tensor.stride(1) == 1
    return packed and strides == sorted(strides) and len(set(strides)) == len(strides)


def test_is_channels_last_tells_the_formats_apart() -> None:
    tensor = torch.zeros(2, 4, 3, 3)
    assert not is_channels_last(tensor)
    assert is_channels_last(tensor.contiguous(memory_format=torch.channels_last))
    assert is_channels_last(tensor.contiguous(memory_format=torch.channels_last)[:, :2])
    assert is_channels_last(torch.zeros(2, 1, 3, 3))
    assert is_channels_last(torch.zeros(2, 4, 1, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_network_is_channels_last_after_the_stem(case: Any, channels: int) -> None:
    network = case.build("fastcnn", in_channels=channels)
    wrong: list[str] = []
    seen = {"activations": 0, "gradients": 0}

    def check(kind: str, name: str, tensor: Tensor) -> None:
        if tensor.dim() == 4:
            seen[kind] += 1
            if not is_channels_last(tensor):
                wrong.append(f"{kind} of {name}: {list(tensor.shape)}, strides {tensor.stride()}")

    def watch(name: str, output: Tensor) -> None:
        check("activations", name, output)
        output.register_hook(lambda gradient: check("gradients", name, gradient))

    for name, module in network.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: watch(name, output))
    images = case.images(channels=channels, small=True)
    assert images.is_contiguous()
    F.cross_entropy(network(images), torch.tensor([3, 7])).backward()
    for name, parameter in network.named_parameters():
        check("gradients", name, parameter.grad)
    assert not wrong, "\n".join(wrong)
    assert seen["activations"] >= 4
    assert seen["gradients"] > seen["activations"]


def channels_last(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (0, 3, 4, 5)], ids=str)
def test_flatten_values_and_gradient_format(shape: tuple[int, ...]) -> None:
    images = channels_last(*shape).requires_grad_()
    output = ChannelsLastFlatten()(images)
    weight = torch.randn_like(output)
    (output * weight).sum().backward()
    assert torch.equal(output, images.flatten(1))
    assert images.grad is not None
    assert torch.equal(images.grad, weight.reshape(shape))
    assert is_channels_last(images.grad)


def test_flatten_second_order_and_transforms() -> None:
    flatten = ChannelsLastFlatten()
    images = channels_last(2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(flatten, images, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(flatten, images)

    plain = images.detach()
    tangent = torch.randn_like(plain)
    _, forward = torch.func.jvp(flatten, (plain,), (tangent,))
    assert torch.equal(forward, tangent.flatten(1))
    per_image = torch.func.vmap(torch.func.grad(lambda image: flatten(image.unsqueeze(0)).square().sum()))(plain)
    assert torch.equal(per_image, 2 * plain)
