"""Pooling: the largest or the mean value under a window that moves over the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastcnn.reference.conv2d import _pair, output_size


def pool2d(x: Tensor, pool_size: tuple[int, int], mode: str = "max") -> Tensor:
    """Pooling of one channel with stride 1: y[i, j] = max or mean of x[i : i + h, j : j + w].

    Args:
        x: Tensor[H, W].
        pool_size: (h, w), the window.
        mode: "max" or "avg". Default: "max".

    Returns:
        Tensor[H - h + 1, W - w + 1].
    """
    if mode not in ("max", "avg"):
        raise ValueError(f"expected mode to be 'max' or 'avg', but got {mode!r}")
    h, w = pool_size
    y = torch.zeros(output_size(x.shape[0], h), output_size(x.shape[1], w), dtype=x.dtype)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            window = x[i : i + h, j : j + w]
            y[i, j] = window.max() if mode == "max" else window.mean()
    return y


def pooled_size(
    size: int, kernel_size: int, stride: int, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> int:
    """How many windows fit along one axis; `padding` is added at each end.

    With ceil_mode a last, partial window counts too, if it starts inside the image or its leading padding.
    """
    extent = dilation * (kernel_size - 1) + 1
    windows = output_size(size, extent, 2 * padding, stride)
    if ceil_mode:
        remainder = (size - extent + 2 * padding) % stride
        if remainder > 0 and windows * stride < size + padding:
            windows += 1
    return windows


def max_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Max pooling with the arguments of torch.nn.functional.max_pool2d, in the input's dtype: nothing is rounded.

    Padding never wins. Of equal values the first in the window wins, row by row; a NaN wins over all before it.

    Args:
        input: Tensor[N, C, H, W] or Tensor[C, H, W]; every window must meet a pixel of it.

    Returns:
        The output Tensor[..., OH, OW] and, of the same shape, the index h * W + w of the pixel it came from.
    """
    (kernel_h, kernel_w), (pad_h, pad_w), (dilation_h, dilation_w) = map(_pair, (kernel_size, padding, dilation))
    stride_h, stride_w = _pair(stride) if stride is not None else (kernel_h, kernel_w)
    height, width = input.shape[-2:]
    out_h = pooled_size(height, kernel_h, stride_h, pad_h, dilation_h, ceil_mode)
    out_w = pooled_size(width, kernel_w, stride_w, pad_w, dilation_w, ceil_mode)

    rows, columns = [], []
    for i in range(out_h):
        for j in range(out_w):
            window = [
                (h, w)
                for h in range(i * stride_h - pad_h, i * stride_h - pad_h + kernel_h * dilation_h, dilation_h)
                for w in range(j * stride_w - pad_w, j * stride_w - pad_w + kernel_w * dilation_w, dilation_w)
                if 0 <= h < height and 0 <= w < width
            ]
            indices = torch.tensor([h * width + w for h, w in window])
            values = input.flatten(-2)[..., indices]
            best = _first_maximum(values.detach())
            rows.append(values.gather(-1, best.unsqueeze(-1)).squeeze(-1))
            columns.append(indices[best])
    shape = (*input.shape[:-2], out_h, out_w)
    return torch.stack(rows, -1).reshape(shape), torch.stack(columns, -1).reshape(shape)


def _first_maximum(values: Tensor) -> Tensor:
    """Position of the first largest value along the last axis, or of the last NaN where there is one."""
    best = torch.zeros(values.shape[:-1], dtype=torch.long)
    largest = values[..., 0]
    for position in range(1, values.shape[-1]):
        candidate = values[..., position]
        wins = (candidate > largest) | candidate.isnan()
        best = torch.where(wins, position, best)
        largest = torch.where(wins, candidate, largest)
    return best


def avg_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average pooling with the arguments of torch.nn.functional.avg_pool2d, computed in float64.

    The sum of the pixels under the window, divided by the window's size within the padded image, or by the number
    of true pixels without count_include_pad, or by divisor_override.

    Args:
        input: Tensor[N, C, H, W] or Tensor[C, H, W].

    Returns:
        float64 Tensor[..., OH, OW].
    """
    (kernel_h, kernel_w), (pad_h, pad_w) = _pair(kernel_size), _pair(padding)
    stride_h, stride_w = _pair(stride) if stride is not None else (kernel_h, kernel_w)
    x = input.double()
    height, width = x.shape[-2:]
    out_h = pooled_size(height, kernel_h, stride_h, pad_h, ceil_mode=ceil_mode)
    out_w = pooled_size(width, kernel_w, stride_w, pad_w, ceil_mode=ceil_mode)

    means = []
    for i in range(out_h):
        for j in range(out_w):
            top, left = i * stride_h - pad_h, j * stride_w - pad_w
            bottom, right = min(top + kernel_h, height + pad_h), min(left + kernel_w, width + pad_w)
            window = x[..., max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
            divisor = window.shape[-2] * window.shape[-1]
            if count_include_pad:
                divisor = (bottom - top) * (right - left)
            if divisor_override is not None:
                divisor = divisor_override
            means.append(window.sum((-2, -1)) / divisor)
    return torch.stack(means, -1).reshape(*x.shape[:-2], out_h, out_w)


def adaptive_avg_pool2d(input: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """Average pooling to a given size, as torch.nn.functional.adaptive_avg_pool2d, computed in float64.

    Output row i is the mean of the input's rows floor(i * H / OH) to ceil((i + 1) * H / OH), likewise the columns.

    Args:
        input: Tensor[N, C, H, W] or Tensor[C, H, W].
        output_size: (OH, OW) or one number for both; None keeps the input's.

    Returns:
        float64 Tensor[..., OH, OW].
    """
    x = input.double()
    height, width = x.shape[-2:]
    size_h, size_w = (output_size, output_size) if isinstance(output_size, int) else output_size
    out_h = height if size_h is None else size_h
    out_w = width if size_w is None else size_w
    means = []
    for i in range(out_h):
        for j in range(out_w):
            rows = slice(i * height // out_h, math.ceil((i + 1) * height / out_h))
            columns = slice(j * width // out_w, math.ceil((j + 1) * width / out_w))
            means.append(x[..., rows, columns].mean((-2, -1)))
    return torch.stack(means, -1).reshape(*x.shape[:-2], out_h, out_w)
