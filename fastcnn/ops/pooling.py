"""max_pool2d, avg_pool2d and adaptive_avg_pool2d: the wrappers over torch.ops.fastcnn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.ops import _torch

_IntOrPair = int | Sequence[int]

# torch declares narrower argument types than it takes.
_torch_max_pool2d: Any = F.max_pool2d
_torch_avg_pool2d: Any = F.avg_pool2d


def max_pool2d(
    input: Tensor,
    kernel_size: _IntOrPair,
    stride: _IntOrPair | None = None,
    padding: _IntOrPair = 0,
    dilation: _IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Takes the maximum under each window, as torch.nn.functional.max_pool2d.

    ``out_h = floor((H + 2 * padding_h - dilation_h * (kernel_h - 1) - 1) / stride_h) + 1``, and likewise ``out_w``;
    with ceil_mode rounded up, less a last window that would start beyond the image and its first padding.

    Args:
        input: Tensor[N, C, H, W] or Tensor[C, H, W]; float32, float64, bfloat16 or float16; any strides; N may be 0.
        kernel_size: rows and columns of the window, an int or a pair.
        stride: rows and columns between windows, an int or a pair. Default: kernel_size.
        padding: rows and columns on each side that never win, an int or a pair; at most half of kernel_size.
        dilation: rows and columns between a window's elements, an int or a pair.
        ceil_mode: whether a last, partial window counts.
        return_indices: whether to return, too, where each maximum was.

    Returns:
        Tensor[N, C, out_h, out_w] or Tensor[C, out_h, out_w] of input's dtype and memory format; with return_indices
        also an int64 tensor of the same shape that holds h * W + w.

    Raises:
        RuntimeError: shapes or hyperparameters that torch refuses; an empty output.
        TypeError: hyperparameters that are no ints.
        NotImplementedError: a dtype or device that only torch's own op covers, with fastcnn.backends.fallback off.

    Numerics: exact. Of equal values the first in the window wins, row by row; a NaN wins over all before it; a window
    that holds nothing but padding gives -inf. The gradient is added up in the windows' order (the half types in
    float32), so it is the same bits for every number of threads; an image's result does not depend on its batch. In
    training the op keeps one byte an output (four for windows of more than 256 elements), otherwise nothing.

    Source: Ranzato et al., Unsupervised Learning of Invariant Feature Hierarchies, CVPR 2007.
    """
    if _torch.use_torch("max_pool2d", input):
        pooled: Tensor = _torch_max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        return pooled
    arguments = (
        _pair("max_pool2d", "kernel_size", kernel_size),
        _pair("max_pool2d", "stride", [] if stride is None else stride),
        _pair("max_pool2d", "padding", padding),
        _pair("max_pool2d", "dilation", dilation),
        ceil_mode,
    )
    if return_indices:
        output, indices = torch.ops.fastcnn.max_pool2d_with_indices.default(_batched(input), *arguments)
        return _like_input(output, input), _like_input(indices, input)
    return _like_input(torch.ops.fastcnn.max_pool2d.default(_batched(input), *arguments), input)


def avg_pool2d(
    input: Tensor,
    kernel_size: _IntOrPair,
    stride: _IntOrPair | None = None,
    padding: _IntOrPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Takes the mean under each window, as torch.nn.functional.avg_pool2d.

    ``out_h = floor((H + 2 * padding_h - kernel_h) / stride_h) + 1``, and likewise ``out_w``; with ceil_mode rounded up,
    less a last window that would start beyond the image and its first padding. The sum under the window is divided by
    the window's size within the padded image, or by what count_include_pad and divisor_override say.

    Args:
        input: Tensor[N, C, H, W] or Tensor[C, H, W]; float32, float64, bfloat16 or float16; any strides; N may be 0.
        kernel_size: rows and columns of the window, an int or a pair.
        stride: rows and columns between windows, an int or a pair. Default: kernel_size.
        padding: rows and columns of zeros on each side, an int or a pair; at most half of kernel_size.
        ceil_mode: whether a last, partial window counts.
        count_include_pad: whether padding counts in the divisor.
        divisor_override: what to divide by instead, not 0.

    Returns:
        Tensor[N, C, out_h, out_w] or Tensor[C, out_h, out_w] of input's dtype and memory format.

    Raises:
        RuntimeError: shapes or hyperparameters that torch refuses; an empty output.
        IndexError: fewer than 3 dimensions.
        TypeError: hyperparameters that are no ints.
        NotImplementedError: a dtype or device that only torch's own op covers, with fastcnn.backends.fallback off.

    Numerics: float32 and the half types accumulate in float32 (the half types round once, at the end), float64 in
    float64; a window's rows are summed first and then each other, so for k x k elements the relative error is at most
    2 k + 1 roundings of the sum of the absolute values. NaN and infinity come out where the sum has them. The result
    depends neither on the number of threads nor on the other images of the batch.

    Source: LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998.
    """
    if _torch.use_torch("avg_pool2d", input):
        averaged: Tensor = _torch_avg_pool2d(
            input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
        return averaged
    if divisor_override is not None:
        _require_int("avg_pool2d", "divisor_override", divisor_override, "int")
    output = torch.ops.fastcnn.avg_pool2d.default(
        _batched(input),
        _pair("avg_pool2d", "kernel_size", kernel_size),
        _pair("avg_pool2d", "stride", [] if stride is None else stride),
        _pair("avg_pool2d", "padding", padding),
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
    return _like_input(output, input)


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """Takes means over windows that divide the image into output_size, as torch.nn.functional.adaptive_avg_pool2d.

    Output row i is the mean of the rows ``floor(i * H / out_h)`` to ``ceil((i + 1) * H / out_h)``, likewise columns.

    Args:
        input: Tensor[N, C, H, W] or Tensor[C, H, W]; float32, float64, bfloat16 or float16; any strides; N may be 0.
        output_size: (out_h, out_w) or one int for both; None in the pair keeps the input's size. (1, 1), the mean of
            each channel, has a kernel of its own.

    Returns:
        Tensor[N, C, out_h, out_w] or Tensor[C, out_h, out_w] of input's dtype and memory format.

    Raises:
        RuntimeError: shapes that torch refuses, negative sizes.
        TypeError: sizes that are no ints.
        NotImplementedError: a dtype or device that only torch's own op covers, with fastcnn.backends.fallback off.

    Numerics: as avg_pool2d. The mean of an empty image is NaN, as torch's.

    Source: Lin et al., Network In Network, ICLR 2014 (global average pooling).
    """
    if _torch.use_torch("adaptive_avg_pool2d", input):
        return F.adaptive_avg_pool2d(input, output_size)  # type: ignore[arg-type]
    op = "adaptive_avg_pool2d"
    if isinstance(output_size, Sequence) and not isinstance(output_size, str):
        if input.dim() <= len(output_size):
            raise ValueError(f"fastcnn::{op}: Input dimension should be at least {len(output_size) + 1}")
        kept = input.shape[input.dim() - len(output_size) :]
        sizes = [default if size is None else size for size, default in zip(output_size, kept, strict=True)]
        for size in sizes:
            _require_int(op, "output_size", size, "tuple of ints")
    else:
        sizes = list(_pair(op, "output_size", output_size))  # type: ignore[arg-type]
    if sizes == [1, 1] and input.dim() not in (3, 4):
        return input.mean((-1, -2), keepdim=True)  # torch takes any rank for this size, and only for this one
    return _like_input(torch.ops.fastcnn.adaptive_avg_pool2d.default(_batched(input), sizes), input)


def _pair(op: str, name: str, value: _IntOrPair) -> Sequence[int]:
    """One int or a sequence of one as two; other lengths go to the op, which refuses them."""
    if type(value) is int:  # the common case first: this runs before every pooling
        return (value, value)
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    for v in values:
        _require_int(op, name, v, "tuple of ints")
    return (values[0], values[0]) if len(values) == 1 else values


def _require_int(op: str, name: str, value: object, wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"fastcnn::{op}: argument '{name}' must be {wanted}, not {type(value).__name__}")


def _batched(input: Tensor) -> Tensor:
    return input.unsqueeze(0) if input.dim() == 3 else input


def _like_input(output: Tensor, input: Tensor) -> Tensor:
    """Drops the batch dimension again where input had none; such output is contiguous, as torch's."""
    return output.squeeze(0).contiguous() if input.dim() == 3 else output
