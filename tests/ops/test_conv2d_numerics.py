"""The error bounds of docs/numerics.md against float64, on what the layers of the seven networks really see.

Inputs are activations after a ReLU and gradients that ReLUs and poolings have masked, of real images: they are positive
and correlated, and sums of them round worse than those of random normals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernels import capabilities, recorded
from torch import Tensor, nn

from fastcnn import backends, models, ops
from fastcnn.data.digits import read_digits

IMAGES = 4
# Each network and the size of its images in pixels, the least that its poolings leave something of.
NETWORKS: dict[str, tuple[Callable[..., nn.Sequential], int]] = {
    "lenet": (lambda **options: models.lenet(pool="max", **options), 28),
    "alexnet": (models.alexnet, 99),
    "vgg": (lambda **options: models.vgg(hidden_units=64, **options), 32),
    "nin": (models.nin, 99),
    "googlenet": (models.googlenet, 64),
    "resnet": (models.resnet, 64),
    "densenet": (models.densenet, 64),
}
WINOGRAD = {"winograd_f4x3": (3, 3), "winograd_f2x3": (3, 3), "winograd_f2x5": (5, 5)}
LEVELS = [level for level in capabilities() if level != "avx512_bf16"]  # whose float32 kernels are those of avx512
PASSES = ("output", "grad_input", "grad_weight")


@dataclass
class Layer:
    """A convolution as a network's forward and backward met it."""

    input: Tensor
    weight: Tensor
    grad_output: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int = 1

    def options(self) -> tuple[Any, ...]:
        return list(self.stride), list(self.padding), [1, 1]

    @cached_property
    def exact(self) -> tuple[Tensor, ...]:
        return self.by_torch(torch.float64)

    def by_torch(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Output and gradients by torch's own convolution."""
        input, weight, grad = (t.to(dtype) for t in (self.input, self.weight, self.grad_output))
        gradients = torch.ops.aten.convolution_backward(
            grad, input, weight, None, *self.options(), False, [0, 0], self.groups, [True, True, False]
        )
        return F.conv2d(input, weight, None, *self.options(), self.groups), *gradients[:2]

    def by_fastcnn(self) -> tuple[Tensor, ...]:
        gradients = torch.ops.fastcnn.conv2d_backward(
            self.grad_output, self.input, self.weight, *self.options(), self.groups, [True, True, False]
        )
        return ops.conv2d(self.input, self.weight, None, *self.options(), self.groups), *gradients[:2]

    def __str__(self) -> str:
        return f"{list(self.weight.shape)} stride {self.stride} groups {self.groups} on {list(self.input.shape)}"


@cache
def layers(name: str) -> list[Layer]:
    """One layer of each shape in the network up to its classifier, with the gradient of a cross entropy."""
    function, size = NETWORKS[name]
    images, labels = read_digits()
    chosen = torch.arange(IMAGES) * (len(images) // IMAGES)
    pixels = F.interpolate(images[chosen].float() / 255, size=size, mode="bilinear")
    torch.manual_seed(0)
    network = models.initialize(function(layers="torch"))
    found: dict[tuple[Any, ...], Layer] = {}

    def capture(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d) and isinstance(module.padding, tuple)
        key = (module.weight.shape, module.stride, args[0].shape)
        if key in found:
            return
        tensors = [t.detach().to(memory_format=torch.channels_last) for t in (args[0], module.weight, output)]
        layer = found[key] = Layer(*tensors, module.stride, module.padding)
        output.register_hook(lambda grad: layer.grad_output.copy_(grad))

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(capture)
    convolutional = [part for part in network if not isinstance(part, (nn.Flatten, nn.Linear, nn.Dropout))]
    features = nn.Sequential(*convolutional)(pixels.to(memory_format=torch.channels_last)).flatten(1)
    classifier = nn.init.xavier_uniform_(torch.empty(10, features.shape[1]))
    F.cross_entropy(F.linear(features, classifier), labels[chosen]).backward()
    return list(found.values())


def errors(got: Tensor, exact: Tensor) -> tuple[float, float]:
    """The rms and the largest error, over the exact result's rms."""
    scale = exact.square().mean().sqrt()
    difference = got.double() - exact
    return float(difference.square().mean().sqrt() / scale), float(difference.abs().max() / scale)


def check_direct(layer: Layer, kernel: str = "") -> None:
    """At most twice the rms error of torch's own, or of rounding the result alone where torch's is hardly more."""
    theirs = layer.by_torch(torch.float32)
    for capability in LEVELS:
        ours: list[Tensor] = []
        with backends.cpu_capability(capability), backends.conv2d_algorithm("direct"), backends.fallback(False):
            kernels = recorded(lambda ours=ours: ours.extend(layer.by_fastcnn()))
        assert any(name.startswith(kernel) for name in kernels), (kernel, kernels)
        for name, got, torchs, truth in zip(PASSES, ours, theirs, layer.exact, strict=True):
            bound = 2 * max(errors(torchs, truth)[0], torch.finfo(torch.float32).eps / 4)
            assert errors(got, truth)[0] <= bound, f"{capability} {name} of {layer}"


def test_numerics_see_layers_of_512_channels() -> None:
    for name in ("vgg", "resnet"):
        assert any(layer.weight.shape[:2] == (512, 512) for layer in layers(name))
    zeros = [float((layer.input == 0).float().mean()) for layer in layers("vgg")]
    assert min(zeros[1:]) > 0.1  # a ReLU came before


@pytest.mark.parametrize("name", NETWORKS)
def test_conv2d_direct_error_is_at_most_twice_torchs(name: str) -> None:
    for layer in layers(name):
        check_direct(layer)


def test_conv2d_planar_error_is_at_most_twice_torchs() -> None:
    first = layers("lenet")[0]
    check_direct(
        Layer(first.input, first.weight[:2], first.grad_output[:, :2], first.stride, first.padding), "conv2d_planar"
    )


@pytest.mark.parametrize("name", ["vgg", "resnet", "densenet"])
def test_conv2d_depthwise_error_is_at_most_twice_torchs(name: str) -> None:
    for layer in layers(name):
        k, c, *kernel = layer.weight.shape
        if k >= c > 1 and kernel == [3, 3]:
            check_direct(
                Layer(layer.input, layer.weight[:c, :1], layer.grad_output[:, :c], layer.stride, layer.padding, c),
                "conv2d_depthwise",
            )


@pytest.mark.parametrize("algorithm", WINOGRAD)
@pytest.mark.parametrize("name", NETWORKS)
def test_conv2d_winograd_error_is_below_its_bounds(name: str, algorithm: str) -> None:
    for layer in layers(name):
        if layer.weight.shape[2:] != WINOGRAD[algorithm] or layer.stride != (1, 1):
            continue
        for capability in LEVELS:
            with backends.cpu_capability(capability), backends.conv2d_algorithm(algorithm):
                ours = layer.by_fastcnn()
            for which, got, truth in zip(PASSES, ours, layer.exact, strict=True):
                rms, largest = errors(got, truth)
                assert rms <= 1e-5 and largest <= 1e-4, f"{capability} {which} of {layer}: {rms}, {largest}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("algorithm", WINOGRAD)
def test_conv2d_winograd_gradients_of_nan_and_infinity_reach_whole_tiles_and_no_others(
    algorithm: str, value: float
) -> None:
    generator, kernel = torch.Generator().manual_seed(1), WINOGRAD[algorithm]
    tensors = [torch.randn(shape, generator=generator) for shape in ((2, 9, 20, 20), (7, 9, *kernel), (2, 7, 20, 20))]
    layer = Layer(*tensors, (1, 1), (kernel[0] // 2, kernel[0] // 2))
    layer.grad_output[1, 3, 9, 10] = value
    _, by_input, by_weight = layer.by_torch(torch.float32)
    with backends.conv2d_algorithm(algorithm):
        _, grad_input, grad_weight = layer.by_fastcnn()
    tile = 4 if algorithm == "winograd_f4x3" else 2
    touched = F.interpolate(F.max_pool2d((~by_input.isfinite()).float(), tile), scale_factor=tile) > 0
    assert (~grad_input.isfinite())[~by_input.isfinite()].all() and grad_input[~touched].isfinite().all()
    touched = (~by_weight.isfinite()).amax((2, 3), keepdim=True).expand_as(grad_weight)
    assert (~grad_weight.isfinite())[~by_weight.isfinite()].all() and grad_weight[~touched].isfinite().all()


@pytest.mark.parametrize("algorithm", ["direct", *WINOGRAD])
def test_conv2d_zeros_of_the_padding_times_infinite_weights_are_nan(algorithm: str) -> None:
    # The definition, and torch's in some layouts; its kernels for channels_last leave the padding out of the sum.
    kernel = WINOGRAD.get(algorithm, (3, 3))
    weight = torch.ones(4, 8, *kernel)
    weight[0, 0, 0, 0] = float("inf")
    size = 40 if algorithm == "direct" else 9
    with backends.conv2d_algorithm(algorithm):
        output = ops.conv2d(torch.ones(1, 8, size, size), weight, padding=1)
    assert output[0, 0, 0, :].isnan().all() and output[0, 0, :, 0].isnan().all()
    assert (~output[0, 0].isfinite()).all() and output[0, 1:].isfinite().all()
    if algorithm == "direct":
        assert output[0, 0, 1:, 1:].isposinf().all()


def test_conv2d_small_maps_leave_the_padding_out_of_the_sum() -> None:
    weight = torch.ones(20, 8, 3, 3)
    weight[0, 0, 0, 0] = float("inf")
    with backends.conv2d_algorithm("direct"):
        output = ops.conv2d(torch.ones(32, 8, 3, 3), weight, padding=1)
    assert output[:, 0, 1:, 1:].isposinf().all() and output[:, 1:].isfinite().all()
    assert output[:, 0, 0].equal(output[:, 1, 0]) and output[:, 0, :, 0].equal(output[:, 1, :, 0])
