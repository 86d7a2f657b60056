"""bfloat16 and float16 in the direct kernels: how they round, which numbers they keep, how pairs of them are read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from conditions import HALF, LAYOUTS, relative_error, tolerance, with_layout

import fastcnn
from fastcnn.ops import conv2d


@pytest.fixture(autouse=True)
def direct_kernels() -> Iterator[None]:
    with fastcnn.backends.conv2d_algorithm("direct"):
        yield


@pytest.mark.parametrize(
    ("dtype", "least", "scale"),
    [
        (torch.bfloat16, 1, 0),
        (torch.bfloat16, 2 - 2**-1, 127),  # up to the largest numbers, and beyond, to infinity
        (torch.float16, 1, 0),
        (torch.float16, 2 - 2**-4, 15),
        (torch.float16, 1, -20),  # among the subnormal numbers
    ],
)
@pytest.mark.parametrize("lanes", [2, 40])  # the kernels for few output channels, and for many
def test_conv2d_half_types_round_once_to_nearest_even(lanes: int, dtype: torch.dtype, least: float, scale: int) -> None:
    # Sums of a number and fractions of its last place, ties among them, which float32 holds exactly.
    high = least + torch.arange(64, dtype=torch.float64) * torch.finfo(dtype).eps
    low = torch.arange(-32, 32, dtype=torch.float64) * torch.finfo(dtype).eps / 16
    input = torch.stack(torch.meshgrid(high, low, indexing="ij")).unsqueeze(0).to(dtype)
    output = conv2d(input, torch.full((lanes, 2, 1, 1), 2.0**scale, dtype=dtype))
    wanted = (input.double().sum(1, keepdim=True) * 2.0**scale).to(dtype).expand_as(output)
    assert torch.equal(output, wanted)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("strides", [(510, 1, 102, 17), (546, 1, 109, 18), (541, 1, 108, 18)], ids=["w", "h", "n"])
def test_conv2d_half_types_of_odd_strides_have_torchs_values_and_gradients(
    strides: tuple[int, ...], dtype: torch.dtype
) -> None:
    # Channels lie together, as in a part of a larger image; pixels, rows, images and weights' rows begin in mid-pair.
    drawn = torch.randn(1200, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)
    image = drawn.as_strided((2, 16, 5, 6), strides)
    weight = drawn[900:].as_strided((16, 16, 1, 1), (17, 1, 17, 17))
    exact = [image.double().requires_grad_(), weight.double().requires_grad_()]
    expected = F.conv2d(*exact)
    wanted = torch.autograd.grad(expected, exact, image.double())
    with fastcnn.backends.fallback(False):
        output = conv2d(image, weight)
        geometry = ([1, 1], [0, 0], [1, 1], 1)
        got = torch.ops.fastcnn.conv2d_backward(image, image, weight, *geometry, [True, True, False])
    assert relative_error(output, expected.detach()) <= tolerance(16, dtype)
    for g, w, terms in zip(got, wanted, (16, 60), strict=False):
        assert relative_error(g, w) <= tolerance(terms, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("dtype", HALF)
def test_conv2d_half_types_keep_every_number(dtype: torch.dtype, groups: int, layout: str) -> None:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    input = with_layout(torch.where(numbers.isfinite(), numbers, 0).view(1, 16, 64, 64), layout)
    weight = torch.eye(16) if groups == 1 else torch.ones(16, 1)
    output = conv2d(input, weight.to(dtype).view(16, -1, 1, 1), groups=groups)
    # Where bfloat16 is multiplied as it is, numbers below the least normal one count as zero.
    normal = torch.finfo(dtype).tiny if dtype == torch.bfloat16 else 0.0
    assert torch.equal(output[input.abs() >= normal], input[input.abs() >= normal])
    assert (output.double() - input.double()).abs().max() <= normal
