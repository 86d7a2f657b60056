"""The definitions from first principles: the textbook's worked numbers, and torch's own functions in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastcnn import reference

X = torch.arange(9.0).reshape(3, 3)
K = torch.arange(4.0).reshape(2, 2)


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def test_corr2d_worked_example() -> None:
    assert reference.corr2d(X, K).tolist() == [[19, 25], [37, 43]]


def test_corr2d_finds_vertical_edges() -> None:
    image = torch.ones(6, 8)
    image[:, 2:6] = 0
    edges = reference.corr2d(image, torch.tensor([[1.0, -1.0]]))
    assert edges.tolist() == [[0, 1, 0, 0, 0, -1, 0]] * 6
    assert reference.corr2d(image.t(), torch.tensor([[1.0, -1.0]])).abs().max() == 0


def test_corr2d_multi_in_worked_example() -> None:
    assert reference.corr2d_multi_in(torch.stack((X, X + 1)), torch.stack((K, K + 1))).tolist() == [
        [56, 72],
        [104, 120],
    ]


def test_corr2d_multi_in_out_worked_example() -> None:
    kernel = torch.stack((K, K + 1))
    output = reference.corr2d_multi_in_out(torch.stack((X, X + 1)), torch.stack((kernel, kernel + 1, kernel + 2)))
    assert output.tolist() == [[[56, 72], [104, 120]], [[76, 100], [148, 172]], [[96, 128], [192, 224]]]


def test_corr2d_multi_in_out_1x1_is_a_matrix_product() -> None:
    x, kernels = random(3, 3, 3), random(2, 3, 1, 1)
    expected = reference.corr2d_multi_in_out(x, kernels)
    torch.testing.assert_close(reference.corr2d_multi_in_out_1x1(x, kernels), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("function", [reference.corr2d_multi_in, reference.corr2d_multi_in_out_1x1])
def test_corr2d_refuses_other_channels(function: Any) -> None:
    kernel = torch.zeros(2, 1, 1) if function is reference.corr2d_multi_in else torch.zeros(4, 2, 1, 1)
    with pytest.raises(ValueError, match="each of the 3 input channels, but got 2"):
        function(torch.zeros(3, 4, 4), kernel)


def test_corr2d_multi_in_out_1x1_refuses_other_kernels() -> None:
    with pytest.raises(ValueError, match=r"expected kernels \[out, in, 1, 1\], but got \[4, 3, 3, 3\]"):
        reference.corr2d_multi_in_out_1x1(torch.zeros(3, 4, 4), torch.zeros(4, 3, 3, 3))


@pytest.mark.parametrize(
    "kernel_size, padding, stride, expected",
    [((3, 3), (1, 1), (1, 1), (8, 8)), ((3, 3), (1, 1), (2, 2), (4, 4)), ((3, 5), (0, 1), (3, 4), (2, 2))],
)
def test_output_size_worked_examples(
    kernel_size: tuple[int, int], padding: tuple[int, int], stride: tuple[int, int], expected: tuple[int, int]
) -> None:
    sizes = [reference.output_size(8, k, 2 * p, s) for k, p, s in zip(kernel_size, padding, stride, strict=True)]
    assert tuple(sizes) == expected
    output = reference.conv2d(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, *kernel_size), None, stride, padding)
    assert output.shape[2:] == expected


def test_conv2d_layer_learns_the_edge_detector() -> None:
    torch.manual_seed(0)
    image = torch.ones(6, 8)
    image[:, 2:6] = 0
    edges = reference.corr2d(image, torch.tensor([[1.0, -1.0]]))
    layer = reference.Conv2D(kernel_size=(1, 2))
    assert layer.bias.tolist() == [0]
    layer.bias.requires_grad_(False)
    for _ in range(10):
        layer.zero_grad()
        ((layer(image) - edges) ** 2).sum().backward()
        with torch.no_grad():
            layer.weight -= 3e-2 * layer.weight.grad
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[1.0, -1.0]]), rtol=0, atol=0.1)


def test_pool2d_worked_examples() -> None:
    assert reference.pool2d(X, (2, 2)).tolist() == [[4, 5], [7, 8]]
    assert reference.pool2d(X, (2, 2), "avg").tolist() == [[2, 3], [5, 6]]
    with pytest.raises(ValueError, match="expected mode to be 'max' or 'avg', but got 'min'"):
        reference.pool2d(X, (2, 2), "min")


CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 3), "padding": (2, 0)},
    {"dilation": 2, "padding": "same"},
    {"padding": "same"},
    {"padding": "valid", "dilation": (1, 2)},
    {"groups": 2},
    {"groups": 4, "stride": 2, "padding": 1, "dilation": (2, 1)},
]


@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_conv2d_is_torch_s(arguments: dict[str, Any], kernel_size: tuple[int, int], with_bias: bool) -> None:
    tensors = [random(2, 4, 9, 11), random(8, 4 // arguments.get("groups", 1), *kernel_size)]
    if with_bias:
        tensors.append(random(8))
    check_value_and_gradients(
        lambda *args: reference.conv2d(*args, **arguments), lambda *args: F.conv2d(*args, **arguments), *tensors
    )


def test_conv2d_unbatched_relu_and_empty_batch() -> None:
    x, weight = random(4, 6, 6), random(3, 4, 3, 3)
    torch.testing.assert_close(reference.conv2d(x, weight, activation="relu"), F.conv2d(x, weight).relu())
    assert reference.conv2d(torch.zeros(0, 4, 6, 6), weight).shape == (0, 3, 4, 4)
    with pytest.raises(ValueError, match="'same' or 'valid', but got 'full'"):
        reference.conv2d(x, weight, padding="full")


def test_conv2d_computes_in_float64() -> None:
    x, weight = random(1, 4, 6, 6).float(), random(3, 4, 3, 3).float()
    output = reference.conv2d(x, weight)
    assert output.dtype == torch.float64
    torch.testing.assert_close(output, F.conv2d(x.double(), weight.double()))


def test_relu_keeps_nan() -> None:
    x = torch.tensor([[[[-1.0, 0.0, 2.0, float("nan"), float("inf"), float("-inf")]]]])
    output = reference.conv2d(x, torch.ones(1, 1, 1, 1), activation="relu").flatten()
    assert output[[0, 1, 2, 4, 5]].tolist() == [0, 0, 2, float("inf"), 0]
    assert output[3].isnan()


# (kernel_size, stride, padding)
WINDOWS = [(2, None, 0), (3, 2, 1), ((3, 2), (1, 2), (1, 0)), (3, 3, 1), (5, 2, 2), ((2, 3), 3, (1, 1))]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("dilation", [1, 2])
def test_max_pool2d_is_torch_s(window: tuple[Any, Any, Any], ceil_mode: bool, dilation: int) -> None:
    x = random(2, 3, 9, 10)
    x[0, 0] = x[0, 0].round()  # ties
    x[1, 2, 3, 4] = x[1, 2, 4, 5] = float("nan")
    x[1, 1, 0, 0] = float("-inf")
    kernel_size, stride, padding = window
    values, indices = reference.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
    expected = F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)
    assert torch.equal(values.nan_to_num(7.5), expected[0].nan_to_num(7.5))
    assert torch.equal(indices, expected[1])


def test_max_pool2d_gradient_goes_to_the_first_of_equal_values() -> None:
    x = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    check_value_and_gradients(lambda x: reference.max_pool2d(x, 2, 1)[0], lambda x: F.max_pool2d(x, 2, 1), x)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_avg_pool2d_is_torch_s(window: tuple[Any, Any, Any]) -> None:
    for ceil_mode, count_include_pad, divisor in itertools.product([False, True], [False, True], [None, 7]):
        arguments = (*window, ceil_mode, count_include_pad, divisor)
        check_value_and_gradients(
            lambda x, arguments=arguments: reference.avg_pool2d(x, *arguments),
            lambda x, arguments=arguments: F.avg_pool2d(x, *arguments),
            random(2, 3, 9, 10),
        )


@pytest.mark.parametrize("output_size", [1, 3, (2, 5), (None, 4), (9, 10), (12, 3)], ids=str)
def test_adaptive_avg_pool2d_is_torch_s(output_size: Any) -> None:
    check_value_and_gradients(
        lambda x: reference.adaptive_avg_pool2d(x, output_size),
        lambda x: F.adaptive_avg_pool2d(x, output_size),
        random(2, 3, 9, 10),
    )


def test_pooling_unbatched() -> None:
    x = random(3, 5, 5)
    torch.testing.assert_close(reference.max_pool2d(x, 2)[0], F.max_pool2d(x, 2))
    torch.testing.assert_close(reference.avg_pool2d(x, 2), F.avg_pool2d(x, 2))
    torch.testing.assert_close(reference.adaptive_avg_pool2d(x, 2), F.adaptive_avg_pool2d(x, 2))


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (2, 4, 3, 5), (2, 4, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_is_torch_s(shape: tuple[int, ...], training: bool) -> None:
    mean, var = random(4), random(4).exp()
    check_value_and_gradients(
        lambda x, gamma, beta: reference.batch_norm(x, gamma, beta, mean, var, 1e-3, 0.7, training)[0],
        lambda x, gamma, beta: F.batch_norm(x, mean.clone(), var.clone(), gamma, beta, training, 0.3, 1e-3),
        random(*shape),
        random(4),
        random(4),
    )
    x, torch_mean, torch_var = random(*shape), mean.clone(), var.clone()
    F.batch_norm(x, torch_mean, torch_var, training=training, momentum=0.3)
    before = (mean.clone(), var.clone())
    _, new_mean, new_var = reference.batch_norm(x, None, None, mean, var, decay=0.7, training=training)
    torch.testing.assert_close(new_mean, torch_mean)
    torch.testing.assert_close(new_var, torch_var)
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])


def test_batch_norm_without_statistics() -> None:
    x = random(6, 4)
    y, mean, var = reference.batch_norm(x, None, None, None, None)
    torch.testing.assert_close(y, F.batch_norm(x, None, None, training=True))
    assert mean is None
    assert var is None
    with pytest.raises(ValueError, match="expected running_mean and running_var for evaluation"):
        reference.batch_norm(x, None, None, None, None, training=False)


def test_batch_norm_leaves_mean_beta_and_variance_gamma_squared() -> None:
    gamma, beta = torch.tensor([0.5, 2.0, -3.0]).double(), torch.tensor([1.0, -1.0, 0.0]).double()
    y, _, _ = reference.batch_norm(random(16, 3, 8, 8), gamma, beta, None, None, eps=0)
    torch.testing.assert_close(y.mean((0, 2, 3)), beta, rtol=0, atol=1e-12)
    torch.testing.assert_close(y.var((0, 2, 3), correction=0), gamma**2)


def test_batch_norm_training_does_not_depend_on_gradients() -> None:
    layer = reference.BatchNorm(4, num_dims=2).double()
    x = random(6, 4)
    trained = layer(x)
    stored = layer.running_mean.clone()
    with torch.no_grad():
        assert torch.equal(layer(x), trained)
    assert not torch.equal(layer.running_mean, stored)


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5, 5)], ids=str)
def test_batch_norm_layer_is_torch_s(shape: tuple[int, ...]) -> None:
    layer = reference.BatchNorm(4, num_dims=len(shape)).double()
    twin = (torch.nn.BatchNorm1d(4) if len(shape) == 2 else torch.nn.BatchNorm2d(4)).double()
    for seed in range(3):
        x = random(*shape) + seed
        torch.testing.assert_close(layer(x), twin(x))
    torch.testing.assert_close(layer.running_mean, twin.running_mean)
    torch.testing.assert_close(layer.running_var, twin.running_var)
    torch.testing.assert_close(layer.eval()(x), twin.eval()(x))


def test_batch_norm_layer_refuses_other_dimensions() -> None:
    with pytest.raises(ValueError, match="expected num_dims to be 2 or 4, but got 3"):
        reference.BatchNorm(4, num_dims=3)
    with pytest.raises(ValueError, match=r"expected an input of 4 dimensions, but got \[6, 4\]"):
        reference.BatchNorm(4, num_dims=4)(torch.zeros(6, 4))


def test_batch_norm_relu_adds_the_residual_before_the_relu() -> None:
    x, residual, mean, var = random(2, 4, 3, 3), random(2, 4, 3, 3) + 1, random(4), random(4).exp()
    normalised = F.batch_norm(x, None, None, training=True)
    plain, _, _ = reference.batch_norm_relu(x, None, None, None, None)
    torch.testing.assert_close(plain, normalised.relu())
    added, new_mean, _ = reference.batch_norm_relu(x, None, None, mean, var, residual=residual)
    torch.testing.assert_close(added, (normalised + residual).relu())
    torch.testing.assert_close(new_mean, reference.batch_norm(x, None, None, mean, var)[1])


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_concat_is_torch_s(dim: int) -> None:
    shapes = [[2, 3, 4], [2, 3, 4], [2, 3, 4]]
    for index, shape in enumerate(shapes):
        shape[dim] = index + 1
    tensors = [random(*shape) for shape in shapes]
    check_value_and_gradients(lambda *x: reference.concat(x, dim), lambda *x: torch.cat(x, dim), *tensors)


def check_value_and_gradients(ours: Any, theirs: Any, *tensors: Tensor) -> None:
    results = []
    for function in (ours, theirs):
        inputs = [tensor.clone().requires_grad_() for tensor in tensors]
        output = function(*inputs)
        weight = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).reshape(output.shape)
        results.append([output, *torch.autograd.grad((output * weight).sum(), inputs)])
    for value, truth in zip(*results, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-10, atol=1e-10)
