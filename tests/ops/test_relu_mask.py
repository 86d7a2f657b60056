"""_relu_mask: the bits that a convolution with ReLU keeps for its backward."""

from __future__ import annotations

import pytest
import torch
from conditions import LAYOUTS, with_layout


def expected_mask(output: torch.Tensor) -> torch.Tensor:
    """Bit k % 8 of byte k / 8 for channel k, set where the gradient of relu passes, as in torch: not for <= 0."""
    channels = output.shape[1]
    passes = (~(output <= 0)).movedim(1, -1).reshape(-1, channels)
    mask = torch.zeros(len(passes), (channels + 7) // 8, dtype=torch.uint8)
    for channel in range(channels):
        mask[:, channel // 8] |= passes[:, channel].to(torch.uint8) << channel % 8
    return mask


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 8, 9, 15, 17, 40, 63, 64, 65, 130])
def test_relu_mask_values(channels: int, dtype: torch.dtype, layout: str) -> None:
    torch.manual_seed(channels)
    output = torch.randn(3, channels, 5, 4).to(dtype)
    output[0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -0.0])
    assert torch.equal(torch.ops.fastcnn._relu_mask(with_layout(output, layout)), expected_mask(output))


def test_relu_mask_values_of_many_rows() -> None:
    output = torch.randn(2, 24, 131, 67).to(memory_format=torch.channels_last)
    masks = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        masks.append(torch.ops.fastcnn._relu_mask(output))
    assert all(torch.equal(mask, expected_mask(output)) for mask in masks)


def test_relu_mask_opcheck_and_empty() -> None:
    for shape in ((2, 9, 3, 2), (0, 9, 3, 2)):
        torch.library.opcheck(torch.ops.fastcnn._relu_mask.default, (torch.randn(shape),))
    assert torch.ops.fastcnn._relu_mask(torch.randn(0, 9, 3, 2)).shape == (0, 2)


def test_conv2d_with_relu_keeps_bits_of_its_output() -> None:
    input, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(16, 3, 3, 3, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        torch.ops.fastcnn.conv2d(input, weight, activation="relu")
    assert [(t.dtype, t.numel()) for t in saved[2:]] == [(torch.uint8, 2 * 6 * 6 * 2)]
    assert len(saved) == 3
