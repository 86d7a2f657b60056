"""What the tests on a GPU share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

DEVICE = "cuda"
# A GPU without our CUDA library is no reason: there the tests fail.
MARKS = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DEVICES = ["cpu", pytest.param(DEVICE, marks=MARKS)]


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 convolutions may be multiplied as TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def moved(t: Tensor) -> Tensor:
    """The same values on the GPU, with the same strides, as a leaf."""
    there = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=DEVICE)
    return there.copy_(t.detach()).requires_grad_(t.requires_grad)
