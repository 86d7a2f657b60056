"""concat on a GPU, against torch.cat; its kernel's indexing is tested without one in tests/cuda_emulation."""

from __future__ import annotations

import gpu
import torch

from fastcnn.ops import concat

pytestmark = gpu.MARKS

SHAPES = [
    ([(5,), (0,), (3,)], 0),
    ([(2, 3, 5, 5), (2, 4, 5, 5)], 1),
    ([(2, 3, 5, 5), (7, 3, 5, 5)], 0),
    ([(2, 3, 5, 1), (2, 3, 5, 6)], -1),
    ([(4, 16, 7, 7)] * 3, 1),
    ([(3, 1, 2)] * 65, 1),  # one more than a kernel's arguments hold
    ([(2, 0, 3), (2, 5, 3)], 1),
    ([(0, 2), (0, 3)], 1),
]


def test_concat_on_cuda_as_torch() -> None:
    for shapes, dim in SHAPES:
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.uint8):
            for channels_last in (False, True):
                tensors = [torch.randint(0, 200, shape, device="cuda").to(dtype) for shape in shapes]
                if channels_last:
                    tensors = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
                output, expected = concat(tensors, dim), torch.cat(tensors, dim)
                assert torch.equal(output, expected)
                assert output.stride() == expected.stride()


def test_concat_on_cuda_promotes_and_differentiates_strided_views() -> None:
    a = torch.randn(4, 6, 5, 5, device="cuda", dtype=torch.float64)[:, ::2].requires_grad_()
    b = torch.randn(4, 2, 5, 5, device="cuda").requires_grad_()
    output = concat([a, b], 1)
    assert torch.equal(output, torch.cat([a, b], 1))
    weight = torch.randn_like(output)
    ours = torch.autograd.grad((output * weight).sum(), [a, b])
    theirs = torch.autograd.grad((torch.cat([a, b], 1) * weight).sum(), [a, b])
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(ours, theirs, strict=True))


def test_concat_on_cuda_of_neighbouring_channels_of_larger_images() -> None:
    whole = torch.randn(3, 24, 5, 7, device="cuda").to(memory_format=torch.channels_last)
    for count in (2, 100):
        parts = [whole[:, 8:16], whole[:, 3:4]] * (count // 2)
        assert torch.equal(concat(parts, 1), torch.cat(parts, 1))


def test_concat_on_cuda_with_64_bit_indices() -> None:
    parts = [
        torch.ones(2, 1 << 29, dtype=torch.uint8, device="cuda"),
        torch.zeros(2, 3, dtype=torch.uint8, device="cuda"),
    ]
    output = concat([*parts, parts[0]], 1)
    assert torch.equal(output[1], torch.cat([part[1] for part in (*parts, parts[0])]))
