"""Convolution, step by step: one channel, several input channels, several output channels, then all of it.

What deep learning calls convolution is cross-correlation: the kernel is not flipped. Pooling is in pool2d.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def output_size(size: int, kernel_size: int, total_padding: int = 0, stride: int = 1) -> int:
    """How many positions the kernel takes along one axis: floor((n - k + p + s) / s).

    Args:
        size: n, elements of the input along this axis.
        kernel_size: k.
        total_padding: p, the elements added at both ends together.
        stride: s.
    """
    return (size - kernel_size + total_padding + stride) // stride


def corr2d(x: Tensor, kernel: Tensor) -> Tensor:
    """Two-dimensional cross-correlation: y[i, j] = sum of x[i : i + h, j : j + w] * kernel.

    Args:
        x: Tensor[H, W].
        kernel: Tensor[h, w].

    Returns:
        Tensor[H - h + 1, W - w + 1].
    """
    h, w = kernel.shape
    y = torch.zeros(output_size(x.shape[0], h), output_size(x.shape[1], w), dtype=x.dtype)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] = (x[i : i + h, j : j + w] * kernel).sum()
    return y


def corr2d_multi_in(x: Tensor, kernel: Tensor) -> Tensor:
    """Several input channels: each has a kernel of its own, and the results are added.

    Args:
        x: Tensor[C, H, W].
        kernel: Tensor[C, h, w].

    Returns:
        Tensor[H - h + 1, W - w + 1].
    """
    _check_channels(x, kernel)
    return torch.stack([corr2d(channel, k) for channel, k in zip(x, kernel, strict=True)]).sum(0)


def corr2d_multi_in_out(x: Tensor, kernels: Tensor) -> Tensor:
    """Several output channels: one kernel of all input channels for each, and the results are stacked.

    Args:
        x: Tensor[C, H, W].
        kernels: Tensor[O, C, h, w].

    Returns:
        Tensor[O, H - h + 1, W - w + 1].
    """
    return torch.stack([corr2d_multi_in(x, kernel) for kernel in kernels])


def corr2d_multi_in_out_1x1(x: Tensor, kernels: Tensor) -> Tensor:
    """A 1x1 convolution is a matrix product over the channels, the same at every pixel.

    Args:
        x: Tensor[C, H, W].
        kernels: Tensor[O, C, 1, 1].

    Returns:
        Tensor[O, H, W].
    """
    if kernels.dim() != 4 or kernels.shape[2:] != (1, 1):
        raise ValueError(f"expected kernels [out, in, 1, 1], but got {list(kernels.shape)}")
    _check_channels(x, kernels[0])
    channels, height, width = x.shape
    y = kernels.reshape(-1, channels) @ x.reshape(channels, height * width)
    return y.reshape(-1, height, width)


class Conv2D(nn.Module):
    """A layer with one kernel and one bias: y = corr2d(x, weight) + bias, for x of Tensor[H, W]."""

    def __init__(self, kernel_size: tuple[int, int]) -> None:
        """A random kernel of (h, w), and no bias yet."""
        super().__init__()
        self.weight = nn.Parameter(torch.rand(kernel_size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Tensor[H, W] to Tensor[H - h + 1, W - w + 1]."""
        return corr2d(x, self.weight) + self.bias


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """The whole convolution, with the arguments of torch.nn.functional.conv2d, computed in float64.

    For each element (a, b) of the kernel: the pixels that it meets, one matrix product over the channels, added up.

    Args:
        input: Tensor[N, C, H, W] or Tensor[C, H, W].
        weight: Tensor[O, C / groups, kh, kw].
        bias: Tensor[O]. Default: none.
        stride: of the output positions, (vertical, horizontal) or one number for both. Default: 1.
        padding: zeros added at each side, a pair or one number; "same" keeps the image size, "valid" adds none.
            Default: 0.
        dilation: distance between the kernel's elements. Default: 1.
        groups: parts of the channels that do not see each other. Default: 1.
        activation: None or "relu". Default: None.

    Returns:
        float64 Tensor[N, O, OH, OW], without N where the input has none.
    """
    if input.dim() == 3:
        single = input.unsqueeze(0)
        return conv2d(single, weight, bias, stride, padding, dilation, groups, activation).squeeze(0)
    x, kernels = input.double(), weight.double()
    (stride_h, stride_w), (dilation_h, dilation_w) = _pair(stride), _pair(dilation)
    out_channels, group_channels, kernel_h, kernel_w = kernels.shape
    extent_h, extent_w = dilation_h * (kernel_h - 1) + 1, dilation_w * (kernel_w - 1) + 1
    top, bottom, left, right = _paddings(padding, extent_h, extent_w)

    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, channels, top + height + bottom, left + width + right)
    padded[:, :, top : top + height, left : left + width] = x
    padded = padded.reshape(batch, groups, group_channels, *padded.shape[2:])
    kernels = kernels.reshape(groups, out_channels // groups, *kernels.shape[1:])

    out_h = output_size(height, extent_h, top + bottom, stride_h)
    out_w = output_size(width, extent_w, left + right, stride_w)
    y = x.new_zeros(batch, groups, out_channels // groups, out_h, out_w)
    for a in range(kernel_h):
        for b in range(kernel_w):
            i, j = a * dilation_h, b * dilation_w
            rows = slice(i, i + (out_h - 1) * stride_h + 1, stride_h)
            columns = slice(j, j + (out_w - 1) * stride_w + 1, stride_w)
            y = y + torch.einsum("ngchw,goc->ngohw", padded[..., rows, columns], kernels[..., a, b])
    y = y.flatten(1, 2)
    if bias is not None:
        y = y + bias.double().reshape(-1, 1, 1)
    return relu(y) if activation == "relu" else y


def relu(x: Tensor) -> Tensor:
    """max(x, 0); NaN stays NaN."""
    return torch.where(x <= 0, torch.zeros_like(x), x)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _paddings(padding: int | tuple[int, int] | str, extent_h: int, extent_w: int) -> tuple[int, int, int, int]:
    """Padding at the top, bottom, left and right; an odd total of "same" has its larger half at the end."""
    if padding == "same":
        total_h, total_w = extent_h - 1, extent_w - 1
        return total_h // 2, total_h - total_h // 2, total_w // 2, total_w - total_w // 2
    if padding == "valid":
        return 0, 0, 0, 0
    if isinstance(padding, str):
        raise ValueError(f"expected padding to be a number, a pair, 'same' or 'valid', but got {padding!r}")
    pad_h, pad_w = _pair(padding)
    return pad_h, pad_h, pad_w, pad_w


def _check_channels(x: Tensor, kernel: Tensor) -> None:
    if x.shape[0] != kernel.shape[0]:
        raise ValueError(f"expected a kernel for each of the {x.shape[0]} input channels, but got {kernel.shape[0]}")
