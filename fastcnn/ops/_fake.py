"""Fake kernels: shape, dtype and strides of every op without its data, for tracing. The checks raise what torch raises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

_Ints = Sequence[int]


def _none_like(t: Tensor) -> Tensor:
    """What an op gives in place of a gradient that was not asked for."""
    return t.new_empty((0,))


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
        torch._check(len(pair) == 2 and min(pair) >= least, lambda n=name, p=pair: f"fastcnn::conv2d: bad {n}={p}")
    torch._check(input.dim() == 4, lambda: f"Expected 3D (unbatched) or 4D (batched) input, got {input.shape}")
    torch._check(weight.dim() == 4, lambda: f"expected 4-dimensional weight, but got weight of size {weight.shape}")
    torch._check(groups > 0, lambda: f"non-positive groups is not supported, but got groups={groups}")
    torch._check(
        input.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0,
        lambda: f"Given groups={groups}, weight of size {weight.shape}, expected input{input.shape} to have "
        f"{weight.shape[1] * groups} channels",
    )
    torch._check(
        input.dtype == weight.dtype,
        lambda: f"Input type ({input.dtype}) and weight type ({weight.dtype}) should be the same",
    )
    out = [
        _conv_out_size(input.shape[2 + d], weight.shape[2 + d], stride[d], padding[d], dilation[d]) for d in (0, 1)
    ]
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
    return torch.empty(
        shape, dtype=input.dtype, device=input.device, memory_format=_conv2d_format(input, weight)
    )


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
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _conv2d_shape(input, weight, stride, padding, dilation, groups)
    torch._check(list(grad_output.shape) == shape, lambda: f"expected grad_output of size {shape}")
    memory_format = _conv2d_format(input, weight)

    def like(t: Tensor) -> Tensor:
        return torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=memory_format)

    return (
        like(input) if output_mask[0] else _none_like(input),
        like(weight) if output_mask[1] else _none_like(input),
        input.new_empty((weight.shape[0],)) if output_mask[2] else _none_like(input),
    )


# --- concat ---------------------------------------------------------------------------------------------------------


@torch.library.register_fake("fastcnn::concat")
def _concat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return torch.ops.aten.cat.default(tensors, dim).clone()
