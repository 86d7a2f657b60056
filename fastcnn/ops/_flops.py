"""FLOP formulas, so that torch.utils.flop_counter.FlopCounterMode counts our convolutions as it counts torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import flop_counter
from torch.utils.flop_counter import register_flop_formula

# Wrapped by their own registration: they take out_val, of which they read the shapes.
_conv_flop: Any = flop_counter.conv_flop
_conv_backward_flop: Any = flop_counter.conv_backward_flop


@register_flop_formula(torch.ops.fastcnn.conv2d)
def _conv2d_flop(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, *args: Any,
    out_shape: Any = None, **kwargs: Any,
) -> int:  # fmt: skip
    return int(_conv_flop(input, weight, bias, stride, padding, dilation, False, out_val=out_shape))


@register_flop_formula(torch.ops.fastcnn._conv2d_traced)
def _conv2d_traced_flop(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, *args: Any, out_shape: Any,
    **kwargs: Any,
) -> int:  # fmt: skip
    return int(_conv_flop(input, weight, bias, stride, padding, dilation, False, out_val=out_shape[0]))


@register_flop_formula(torch.ops.fastcnn.conv2d_backward)
def _conv2d_backward_flop(
    grad_output: Any, input: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: Any, output_mask: Any,
    activated: Any = None, switches: Any = None, *, out_shape: Any, **kwargs: Any,
) -> int:  # fmt: skip
    return int(
        _conv_backward_flop(
            grad_output,
            input,
            weight,
            None,
            stride,
            padding,
            dilation,
            False,
            (0, 0),
            groups,
            output_mask,
            out_val=out_shape,
        )
    )


def _dense_block_convolutions(shape: Any, parameters: Any) -> list[tuple[Any, Any, Any]]:
    """Shapes of each convolution's input, weight and output, for a block of that input."""
    n, channels, *size = shape
    shapes = []
    for weight in parameters[2::4]:
        shapes.append(((n, channels, *size), weight, (n, weight[0], *size)))
        channels += weight[0]
    return shapes


@register_flop_formula(
    [
        torch.ops.fastcnn.dense_block_train,
        torch.ops.fastcnn._dense_block_train_traced,
        torch.ops.fastcnn.dense_block_infer,
        torch.ops.fastcnn._dense_block_infer_traced,
    ]
)
def _dense_block_flop(input: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    convolutions = _dense_block_convolutions(input, args[-2])
    return sum(int(_conv_flop(i, w, None, 1, 1, 1, False, out_val=o)) for i, w, o in convolutions)


@register_flop_formula([torch.ops.fastcnn.dense_block_train_backward, torch.ops.fastcnn.dense_block_infer_backward])
def _dense_block_backward_flop(
    grad_output: Any, features: Any, statistics: Any, parameters: Any, eps: Any, output_mask: Any,
    switches: Any = None, *, out_shape: Any, **kwargs: Any,
) -> int:  # fmt: skip
    n, channels, *size = features
    channels -= sum(weight[0] for weight in parameters[2::4])
    flop, passes_on = 0, bool(output_mask[0])
    for i, (input, weight, output) in enumerate(_dense_block_convolutions((n, channels, *size), parameters)):
        by_norm = output_mask[1 + 4 * i] or output_mask[2 + 4 * i]
        flop += int(_conv_flop(input, weight, None, 1, 1, 1, False, out_val=output)) * (
            bool(passes_on or by_norm) + bool(output_mask[3 + 4 * i])
        )
        passes_on = passes_on or any(output_mask[1 + 4 * i : 5 + 4 * i])
    return flop
