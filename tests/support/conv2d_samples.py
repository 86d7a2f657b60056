"""Convolutions that the tests of conv2d share, on every device."""

from __future__ import annotations

from typing import Any

import torch
from conditions import with_layout

# One list feeds values, layouts, gradients and opcheck: sizes straddle the vector widths of 4, 8 and 16 lanes.
SAMPLES: dict[str, dict[str, Any]] = {
    "one_by_one": dict(n=2, c=17, k=33, size=(5, 7), kernel=(1, 1)),
    "three": dict(n=2, c=16, k=64, size=(9, 8), kernel=(3, 3), padding=1),
    "stem_one_channel": dict(n=2, c=1, k=6, size=(28, 28), kernel=(5, 5), padding=2),
    "stem_strided": dict(n=1, c=3, k=65, size=(23, 19), kernel=(7, 7), stride=2, padding=3),
    "many_channels": dict(n=1, c=130, k=31, size=(4, 5), kernel=(3, 3), padding=1),
    "uneven": dict(n=3, c=5, k=15, size=(11, 6), kernel=(3, 2), stride=(2, 3), padding=(2, 1), dilation=(2, 1)),
    "dilated": dict(n=1, c=8, k=8, size=(12, 13), kernel=(3, 3), padding=2, dilation=2),
    "stride_over_kernel": dict(n=2, c=4, k=9, size=(10, 10), kernel=(1, 2), stride=3),
    "grouped": dict(n=2, c=12, k=18, size=(7, 7), kernel=(3, 3), padding=1, groups=3),
    "depthwise": dict(n=2, c=35, k=35, size=(8, 9), kernel=(3, 3), stride=2, padding=1, groups=35),
    "depthwise_multiplied": dict(n=1, c=6, k=12, size=(6, 6), kernel=(3, 3), padding=1, groups=6),
    "no_images": dict(n=0, c=3, k=4, size=(5, 5), kernel=(3, 3)),
    "one_pixel": dict(n=1, c=2, k=3, size=(1, 1), kernel=(1, 1)),
    # Where the taps outside the image are left out.
    "small_maps": dict(n=9, c=70, k=33, size=(3, 4), kernel=(5, 5), padding=2),
    "small_maps_long_sums": dict(n=6, c=300, k=20, size=(3, 3), kernel=(3, 3), padding=1),
    "small_maps_strided": dict(n=8, c=24, k=40, size=(6, 5), kernel=(3, 3), padding=1, stride=2),
    "wide_few_outputs": dict(n=1, c=2, k=4, size=(3, 700), kernel=(3, 3), padding=1),
    "large_padding": dict(n=1, c=2, k=3, size=(2, 2), kernel=(3, 3), padding=4),
}


def tensors(
    sample: dict[str, Any], dtype: torch.dtype = torch.float32, layout: str = "contiguous", grad: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    groups = sample.get("groups", 1)
    input = torch.randn(sample["n"], sample["c"], *sample["size"], generator=generator, dtype=torch.float64)
    weight = torch.randn(
        sample["k"], sample["c"] // groups, *sample["kernel"], generator=generator, dtype=torch.float64
    )
    bias = torch.randn(sample["k"], generator=generator, dtype=torch.float64)
    made = [t.to(dtype).requires_grad_(grad) for t in (input, weight, bias)]
    options = {key: sample[key] for key in ("stride", "padding", "dilation", "groups") if key in sample}
    return with_layout(made[0], layout), with_layout(made[1], layout), made[2], options
