"""conv2d: the wrapper over torch.ops.fastcnn.conv2d."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.ops import _torch

_IntOrPair = int | Sequence[int]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _IntOrPair = 1,
    padding: _IntOrPair | str = 0,
    dilation: _IntOrPair = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """Cross-correlates images with a bank of kernels, as torch.nn.functional.conv2d, and optionally applies ReLU.

    ``out_h = floor((H + 2 * padding_h - dilation_h * (kernel_h - 1) - 1) / stride_h) + 1``, and likewise ``out_w``.

    Args:
        input: Tensor[N, C, H, W] or Tensor[C, H, W]; float32, float64, bfloat16 or float16; any strides.
        weight: Tensor[K, C / groups, kernel_h, kernel_w] of input's dtype.
        bias: Tensor[K] of input's dtype, or None.
        stride: rows and columns between windows, an int or a pair.
        padding: rows and columns of zeros on each side, an int or a pair; 'valid' is 0, and 'same' (stride 1 only)
            gives the output the input's size.
        dilation: rows and columns between a kernel's elements, an int or a pair.
        groups: groups of channels that do not see each other.
        activation: None, or 'relu' to apply max(x, 0) to the result in the same pass.

    Returns:
        Tensor[N, K, out_h, out_w] or Tensor[K, out_h, out_w] of input's dtype; channels_last if input or weight is.

    Raises:
        RuntimeError: shapes, dtypes, devices or hyperparameters that torch refuses.
        ValueError: an unknown activation.
        NotImplementedError: a case that only torch's own op covers, with fastcnn.backends.fallback off.

    Numerics: float32 and the half types accumulate in float32 (the half types round once, at the end), float64 in
    float64, on the CPU in chains of at most 512 terms. The error's rms is there at most twice that of torch's own
    convolution. The result does not depend on the number of threads, and on the other images of the batch only by the
    algorithm, unless backends.batch_invariant(True). NaN and infinity come out where the sum over the window, padding
    counted as zeros, has them; ReLU keeps NaN. On CPUs with AVX-512 BF16, bfloat16 numbers below the least normal one
    count as zero. docs/numerics.md has the bounds of each kernel, Winograd's included.

    Source: Zhang et al., High Performance Zero-Memory Overhead Direct Convolutions, ICML 2018.
    """
    if _torch.use_torch("conv2d", input, weight, bias):
        output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        return F.relu(output) if activation is not None else output
    stride, dilation = _pair(stride), _pair(dilation)
    batched = input.dim() != 3
    if not batched:
        input = input.unsqueeze(0)
    if isinstance(padding, str):
        input, padding = _string_padding(input, weight, stride, padding, dilation)
    result: Tensor = torch.ops.fastcnn.conv2d.default(
        input, weight, bias, stride, _pair(padding), dilation, groups, activation
    )
    return result if batched else result.squeeze(0)


def _pair(value: _IntOrPair) -> Sequence[int]:
    if isinstance(value, Sequence):
        return (value[0], value[0]) if len(value) == 1 else value
    return (value, value)


def _string_padding(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: str, dilation: Sequence[int]
) -> tuple[Tensor, Sequence[int]]:
    """Turns 'same' and 'valid' into numbers; where 'same' is uneven, the extra row or column goes to the far side."""
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise RuntimeError(f"fastcnn::conv2d: Invalid padding string: '{padding}'; expected 'same' or 'valid'")
    if any(s != 1 for s in stride):
        raise RuntimeError(
            f"fastcnn::conv2d: padding='same' is not supported for strided convolutions, but got stride={tuple(stride)}"
        )
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=False)]
    if any(t % 2 for t in total):
        input = F.pad(input, (0, total[1] % 2, 0, total[0] % 2))
    return input, [t // 2 for t in total]
