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
