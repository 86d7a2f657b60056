"""What the tests on a GPU share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

DEVICE = "cuda"
# A GPU without our CUDA library is no reason: there the tests fail.
MARKS = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DEVICES = ["cpu", pytest.param(DEVICE, marks=MARKS)]


def moved(t: Tensor) -> Tensor:
    """The same values on the GPU, with the same strides, as a leaf."""
    there = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=DEVICE)
    return there.copy_(t.detach()).requires_grad_(t.requires_grad)
