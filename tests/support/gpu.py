"""What the tests on a GPU share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastcnn import _library

DEVICE = "cuda"
MARKS = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available() or _library.cuda_missing_reason() is not None,
        reason=f"no GPU, or no CUDA library: {_library.cuda_missing_reason()}",
    ),
]


def moved(t: Tensor) -> Tensor:
    """The same values on the GPU, with the same strides, as a leaf."""
    there = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=DEVICE)
    return there.copy_(t.detach()).requires_grad_(t.requires_grad)
