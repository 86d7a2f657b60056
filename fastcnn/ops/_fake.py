"""Fake kernels: every op's shapes, dtypes and strides without data, for tracing. The checks raise what torch raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

_Ints = Sequence[int]


def _none_like(t: Tensor) -> Tensor:
    """What an op gives in place of a gradient that was not asked for."""
    return t.new_empty((0,))


def _switches() -> Tensor:
    """The switches as a traced forward gives them to its backward: kSwitchValues of csrc/common/switches.h."""
    return torch.empty(32, dtype=torch.int64, device="cpu")


# --- conv2d ---------------------------------------------------------------------------------------------------------


def _conv_out_size(size: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
    return (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1


def _conv2d_format(input: Tensor, weight: Tensor) -> torch.memory_format:
    nhwc = torch.channels_last
    return nhwc if suggest_memory_format(input) == nhwc else suggest_memory_format(weight)


def _conv2d_shape(
    input: Tensor, weight: Tensor, stride: _Ints, padding: _Ints, dilation: _Ints, groups: int
) -> list[int]:
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        torch._check(len(pair) == 2 and min(pair) >= least, lambda n=name, p=pair: f"non-positive {n}: {n}={p}")
    torch._check(input.dim() == 4, lambda: f"Expected 3D (unbatched) or 4D (batched) input, got {input.shape}")
    torch._check(weight.dim() == 4, lambda: f"expected 4-dimensional weight, but got weight of size {weight.shape}")
    torch._check(groups > 0, lambda: f"non-positive groups is not supported, but got groups={groups}")
    torch._check(
        input.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0,
        lambda: (
            f"Given groups={groups}, weight of size {weight.shape}, expected input{input.shape} to have "
            f"{weight.shape[1] * groups} channels"
        ),
    )
    torch._check(
        input.dtype == weight.dtype,
        lambda: f"Input type ({input.dtype}) and weight type ({weight.dtype}) should be the same",
    )
    out = [_conv_out_size(input.shape[2 + d], weight.shape[2 + d], stride[d], padding[d], dilation[d]) for d in (0, 1)]
    torch._check(
        out[0] > 0 and out[1] > 0, lambda: f"Kernel size can't be greater than actual input size: {input.shape}"
    )
    return [input.shape[0], weight.shape[0], *out]


@torch.library.register_fake("fastcnn::conv2d")
def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Ints = (1, 1),
    padding: _Ints = (0, 0),
    dilation: _Ints = (1, 1),
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    shape = _conv2d_shape(input, weight, stride, padding, dilation, groups)
    if bias is not None:
        torch._check(
            bias.dim() == 1 and bias.shape[0] == shape[1],
            lambda: f"expected bias to be 1-dimensional with {shape[1]} elements, but got {bias.shape}",
        )
        torch._check(input.dtype == bias.dtype, lambda: f"Input type ({input.dtype}) and bias type ({bias.dtype})")
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=_conv2d_format(input, weight))


@torch.library.register_fake("fastcnn::_conv2d_traced")
def _conv2d_traced(input: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _conv2d(input, *args), _switches()


@torch.library.register_fake("fastcnn::conv2d_backward")
def _conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    groups: int,
    output_mask: Sequence[bool],
    activated: Tensor | None = None,
    switches: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _conv2d_shape(input, weight, stride, padding, dilation, groups)
    torch._check(list(grad_output.shape) == shape, lambda: f"expected grad_output of size {shape}")
    if activated is not None:
        mask = [shape[0] * shape[2] * shape[3], (shape[1] + 7) // 8]
        torch._check(list(activated.shape) == mask, lambda: f"expected activated of size {mask}")
    memory_format = _conv2d_format(input, weight)

    def like(t: Tensor) -> Tensor:
        return torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=memory_format)

    return (
        like(input) if output_mask[0] else _none_like(input),
        like(weight) if output_mask[1] else _none_like(input),
        input.new_empty((weight.shape[0],)) if output_mask[2] else _none_like(input),
    )


# --- batch_norm -----------------------------------------------------------------------------------------------------


def _empty_like_input(input: Tensor) -> Tensor:
    return torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=suggest_memory_format(input))


def _batch_norm_rows(input: Tensor) -> int:
    torch._check(input.dim() >= 2, lambda: f"expected at least 2D input (got {input.dim()}D input)")
    rows = input.shape[0]
    for size in input.shape[2:]:
        rows = rows * size
    return rows


def _batch_norm_check(input: Tensor, residual: Tensor | None, **per_channel: Tensor | None) -> None:
    half = input.dtype in (torch.bfloat16, torch.float16)
    expected = {input.dtype, torch.float32} if half else {input.dtype}
    for name, t in per_channel.items():
        if t is None:
            continue
        torch._check(t.shape == input.shape[1:2], lambda n=name: f"{n} should contain {input.shape[1]} elements")
        torch._check(
            t.device == input.device,
            lambda n=name, d=t.device: f"{n} on {d} is not on the expected device {input.device}",
        )
        torch._check(
            t.dtype in expected, lambda n=name, d=t.dtype, e=expected: f"mixed dtype: {n} has {d}, expected {e}"
        )
        expected = {t.dtype}
    if residual is not None:
        torch._check(residual.shape == input.shape, lambda: f"expected residual of input's size {input.shape}")
        torch._check(residual.dtype == input.dtype, lambda: f"mixed dtype: residual {residual.dtype}, {input.dtype}")


def _batch_norm_mask(input: Tensor, relu: bool) -> Tensor:
    shape = (_batch_norm_rows(input), (input.shape[1] + 7) // 8) if relu else (0,)
    return torch.empty(shape, dtype=torch.uint8, device=input.device)


@torch.library.register_fake("fastcnn::_relu_mask")
def _relu_mask(output: Tensor) -> Tensor:
    return _batch_norm_mask(output, relu=True)


@torch.library.register_fake("fastcnn::batch_norm_train")
def _batch_norm_train(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows = _batch_norm_rows(input)
    torch._check_value(rows != 1, lambda: f"Expected more than 1 value per channel when training, got {input.shape}")
    torch._check_value(eps > 0, lambda: f"batch_norm eps must be positive during training, but got {eps}")
    _batch_norm_check(input, residual, weight=weight, bias=bias)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    mean = torch.empty(input.shape[1:2], dtype=wide, device=input.device)
    return _empty_like_input(input), mean, torch.empty_like(mean)


@torch.library.register_fake("fastcnn::_batch_norm_train")
def _batch_norm_train_with_mask(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_batch_norm_train(input, weight, bias, residual, eps, relu), _batch_norm_mask(input, relu)


@torch.library.register_fake("fastcnn::batch_norm_infer")
def _batch_norm_infer(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    relu: bool,
) -> Tensor:
    _batch_norm_rows(input)
    torch._check_value(eps >= 0, lambda: f"batch_norm eps must be non-negative, but got {eps}")
    _batch_norm_check(input, residual, running_mean=mean, running_var=var, weight=weight, bias=bias)
    return _empty_like_input(input)


@torch.library.register_fake("fastcnn::_batch_norm_infer")
def _batch_norm_infer_with_mask(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    return _batch_norm_infer(input, mean, var, weight, bias, residual, eps, relu), _batch_norm_mask(input, relu)


@torch.library.register_fake("fastcnn::_batch_norm_train_traced")
def _batch_norm_train_traced(*args: Any) -> tuple[Tensor, ...]:
    return *_batch_norm_train_with_mask(*args), _switches()


@torch.library.register_fake("fastcnn::_batch_norm_infer_traced")
def _batch_norm_infer_traced(*args: Any) -> tuple[Tensor, ...]:
    return *_batch_norm_infer_with_mask(*args), _switches()


@torch.library.register_fake("fastcnn::_batch_norm_update")
def _batch_norm_update(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float, rows: int
) -> None:
    pass


@torch.library.register_fake("fastcnn::batch_norm_train_backward")
@torch.library.register_fake("fastcnn::batch_norm_infer_backward")
def _batch_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    mask: Tensor,
    eps: float,
    output_mask: Sequence[bool],
    switches: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _batch_norm_rows(input)
    torch._check(grad_output.shape == input.shape, lambda: f"expected grad_output of input's size {input.shape}")
    torch._check(grad_output.dtype == input.dtype, lambda: f"mixed dtype: {grad_output.dtype} and {input.dtype}")
    _batch_norm_check(input, None, mean=mean, var=var)
    _batch_norm_check(input, None, weight=weight)
    per_channel = torch.empty(
        input.shape[1:2], dtype=input.dtype if weight is None else weight.dtype, device=input.device
    )
    return (
        _empty_like_input(input) if output_mask[0] else _none_like(input),
        per_channel if output_mask[1] else _none_like(input),
        torch.empty_like(per_channel) if output_mask[2] else _none_like(input),
        _empty_like_input(input) if output_mask[3] else _none_like(input),
    )


# --- concat ---------------------------------------------------------------------------------------------------------


@torch.library.register_fake("fastcnn::concat")
def _concat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    output: Tensor = torch.ops.aten.cat.default(tensors, dim)
    return output.clone()


# --- dense_block ----------------------------------------------------------------------------------------------------


def _dense_block_output(input: Tensor, parameters: Sequence[Tensor], eps: Sequence[float]) -> tuple[Tensor, int]:
    """The output, and how many channels the last layer reads."""
    torch._check(
        len(eps) > 0 and len(parameters) == 4 * len(eps),
        lambda: f"expected four parameters a layer, but got {len(parameters)} for {len(eps)} layers",
    )
    channels, read = input.shape[1], 0
    for norm_weight, norm_bias, weight, bias in zip(*(parameters[i::4] for i in range(4)), strict=True):
        shape = [input.shape[0], channels, *input.shape[2:]]
        _batch_norm_check(input.new_empty(shape), None, weight=norm_weight, bias=norm_bias)
        _conv2d_shape(input.new_empty(shape, dtype=weight.dtype), weight, (1, 1), (1, 1), (1, 1), 1)
        torch._check(bias.shape == weight.shape[:1], lambda b=bias: f"expected bias to be 1-dimensional, got {b.shape}")
        channels, read = channels + weight.shape[0], channels
    shape = [input.shape[0], channels, *input.shape[2:]]
    memory_format = _conv2d_format(input, parameters[2])
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format), read


@torch.library.register_fake("fastcnn::dense_block_train")
def _dense_block_train(
    input: Tensor, parameters: Sequence[Tensor], eps: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    rows = _batch_norm_rows(input)
    torch._check_value(rows != 1, lambda: f"Expected more than 1 value per channel when training, got {input.shape}")
    output, read = _dense_block_output(input, parameters, eps)
    mean = torch.empty((read,), dtype=torch.float64, device=input.device)
    return output, mean, torch.empty_like(mean)


@torch.library.register_fake("fastcnn::_dense_block_train_traced")
def _dense_block_train_traced(*args: Any) -> tuple[Tensor, ...]:
    return *_dense_block_train(*args), _switches()


@torch.library.register_fake("fastcnn::dense_block_infer")
def _dense_block_infer(
    input: Tensor, statistics: Sequence[Tensor], parameters: Sequence[Tensor], eps: Sequence[float]
) -> Tensor:
    torch._check(len(statistics) == 2 * len(eps), lambda: f"expected 2 statistics a layer, but got {len(statistics)}")
    return _dense_block_output(input, parameters, eps)[0]


@torch.library.register_fake("fastcnn::_dense_block_infer_traced")
def _dense_block_infer_traced(*args: Any) -> tuple[Tensor, Tensor]:
    return _dense_block_infer(*args), _switches()


@torch.library.register_fake("fastcnn::dense_block_train_backward")
@torch.library.register_fake("fastcnn::dense_block_infer_backward")
def _dense_block_backward(
    grad_output: Tensor,
    features: Tensor,
    statistics: Sequence[Tensor],
    parameters: Sequence[Tensor],
    eps: Sequence[float],
    output_mask: Sequence[bool],
    switches: Tensor | None = None,
) -> list[Tensor]:
    torch._check(grad_output.shape == features.shape, lambda: f"expected grad_output of size {features.shape}")
    nhwc = torch.channels_last
    channels = features.shape[1] - sum(weight.shape[0] for weight in parameters[2::4])
    shape = [features.shape[0], channels, *features.shape[2:]]
    memory_format = suggest_memory_format(features)
    grads = [torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=memory_format)]
    for i, p in enumerate(parameters):
        # A convolution reads a channels_last image, so its weight's gradient is channels_last.
        memory_format = nhwc if i % 4 == 2 else torch.contiguous_format
        grads.append(torch.empty(p.shape, dtype=p.dtype, device=p.device, memory_format=memory_format))
    return [grad if wanted else _none_like(features) for grad, wanted in zip(grads, output_mask, strict=True)]


# --- pooling --------------------------------------------------------------------------------------------------------


def _pool_pair(op: str, name: str, values: _Ints) -> tuple[int, int]:
    torch._check(
        len(values) == 2,
        lambda: f"fastcnn::{op}: {op}: {name} must either be a single int, or a tuple of two ints, but got {values}",
    )
    torch._check(
        max(abs(values[0]), abs(values[1])) < 2**31,
        lambda: f"fastcnn::{op}: {name}: value cannot be converted to type int without overflow, but got {values}",
    )
    return values[0], values[1]


def _pool2d_shape(
    op: str, sizes: _Ints, kernel_size: _Ints, stride: _Ints, padding: _Ints, dilation: _Ints, ceil_mode: bool
) -> list[int]:
    kernel = _pool_pair(op, "kernel_size", kernel_size)
    step = _pool_pair(op, "stride", stride) if len(stride) > 0 else kernel
    pad = _pool_pair(op, "padding", padding)
    dilate = _pool_pair(op, "dilation", dilation)
    for name, values in (("kernel size", kernel), ("stride", step), ("dilation", dilate)):
        torch._check(
            values[0] > 0 and values[1] > 0,
            lambda n=name, v=values: f"fastcnn::{op}: {n} should be greater than zero, but got {v}",
        )
    if op == "avg_pool2d" and len(sizes) < 3:
        raise IndexError(f"fastcnn::{op}: Dimension out of range: expected 3D or 4D input, but got {sizes}")
    torch._check(len(sizes) == 4, lambda: f"fastcnn::{op}: 3D or 4D (batch mode) tensor expected, got {sizes}")
    torch._check(
        sizes[1] > 0 and sizes[2] > 0 and sizes[3] > 0,
        lambda: f"fastcnn::{op}: Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size, got {sizes}",
    )
    out = []
    for size, k, s, p, d in zip(sizes[2:], kernel, step, pad, dilate, strict=True):
        torch._check(
            0 <= p <= k // 2,
            lambda k=k, p=p: f"fastcnn::{op}: pad should be non-negative and at most half of kernel size, got {p}, {k}",
        )
        n = (size + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (n - 1) * s >= size + p:
            n -= 1
        torch._check(n >= 1, lambda n=n: f"fastcnn::{op}: Calculated output size {n}: Output size is too small")
        out.append(n)
    return [sizes[0], sizes[1], *out]


def _pooled(input: Tensor, shape: _Ints, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(
        shape, dtype=dtype or input.dtype, device=input.device, memory_format=suggest_memory_format(input)
    )


@torch.library.register_fake("fastcnn::max_pool2d")
def _max_pool2d(
    input: Tensor,
    kernel_size: _Ints,
    stride: _Ints = (),
    padding: _Ints = (0, 0),
    dilation: _Ints = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    return _pooled(input, _pool2d_shape("max_pool2d", input.shape, kernel_size, stride, padding, dilation, ceil_mode))


@torch.library.register_fake("fastcnn::max_pool2d_with_indices")
def _max_pool2d_with_indices(
    input: Tensor,
    kernel_size: _Ints,
    stride: _Ints = (),
    padding: _Ints = (0, 0),
    dilation: _Ints = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    shape = _pool2d_shape("max_pool2d", input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return _pooled(input, shape), _pooled(input, shape, torch.int64)


@torch.library.register_fake("fastcnn::_max_pool2d_train")
def _max_pool2d_train(
    input: Tensor, kernel_size: _Ints, stride: _Ints, padding: _Ints, dilation: _Ints, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    shape = _pool2d_shape("max_pool2d", input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    dtype = torch.uint8 if kernel_size[0] * kernel_size[1] <= 256 else torch.int32
    offsets = torch.empty(shape, dtype=dtype, device=input.device, memory_format=torch.channels_last)
    return _pooled(input, shape), offsets


@torch.library.register_fake("fastcnn::_max_pool2d_indices")
def _max_pool2d_indices(
    offsets: Tensor,
    input_size: _Ints,
    kernel_size: _Ints,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    ceil_mode: bool,
    memory_format: torch.memory_format,
) -> Tensor:
    return torch.empty(offsets.shape, dtype=torch.int64, device=offsets.device, memory_format=memory_format)


@torch.library.register_fake("fastcnn::_max_pool2d_gather")
def _max_pool2d_gather(
    values: Tensor,
    offsets: Tensor,
    kernel_size: _Ints,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    ceil_mode: bool,
) -> Tensor:
    return _pooled(values, offsets.shape)


@torch.library.register_fake("fastcnn::max_pool2d_backward")
def _max_pool2d_backward(
    grad_output: Tensor,
    offsets: Tensor,
    input_size: _Ints,
    kernel_size: _Ints,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    ceil_mode: bool,
    memory_format: torch.memory_format,
) -> Tensor:
    return _pool2d_grad_input(grad_output, input_size, memory_format)


def _pool2d_grad_input(grad_output: Tensor, input_size: _Ints, memory_format: torch.memory_format) -> Tensor:
    return torch.empty(input_size, dtype=grad_output.dtype, device=grad_output.device, memory_format=memory_format)


@torch.library.register_fake("fastcnn::avg_pool2d")
def _avg_pool2d(
    input: Tensor,
    kernel_size: _Ints,
    stride: _Ints = (),
    padding: _Ints = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    torch._check(
        divisor_override is None or divisor_override != 0, lambda: "fastcnn::avg_pool2d: divisor must be not zero"
    )
    return _pooled(input, _pool2d_shape("avg_pool2d", input.shape, kernel_size, stride, padding, (1, 1), ceil_mode))


@torch.library.register_fake("fastcnn::avg_pool2d_backward")
def _avg_pool2d_backward(
    grad_output: Tensor,
    input_size: _Ints,
    kernel_size: _Ints,
    stride: _Ints,
    padding: _Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    memory_format: torch.memory_format,
) -> Tensor:
    return _pool2d_grad_input(grad_output, input_size, memory_format)


@torch.library.register_fake("fastcnn::adaptive_avg_pool2d")
def _adaptive_avg_pool2d(input: Tensor, output_size: _Ints) -> Tensor:
    op = "fastcnn::adaptive_avg_pool2d: "
    torch._check(len(output_size) == 2, lambda: f"{op}output_size must be 2, but got {output_size}")
    torch._check(
        output_size[0] >= 0 and output_size[1] >= 0,
        lambda: f"{op}elements of output_size must be greater than or equal to 0 but received {output_size}",
    )
    torch._check(input.dim() == 4, lambda: f"{op}Expected 3D or 4D tensor, but got {input.shape}")
    if output_size[0] != 1 or output_size[1] != 1:
        torch._check(
            input.shape[2] > 0 and input.shape[3] > 0,
            lambda: f"{op}Expected input to have non-zero size for non-batch dimensions, but got {input.shape}",
        )
    return _pooled(input, [input.shape[0], input.shape[1], *output_size])


@torch.library.register_fake("fastcnn::adaptive_avg_pool2d_backward")
def _adaptive_avg_pool2d_backward(grad_output: Tensor, input_size: _Ints, memory_format: torch.memory_format) -> Tensor:
    return _pool2d_grad_input(grad_output, input_size, memory_format)
