"""Concatenation: tensors one after the other along one dimension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def concat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Puts the tensors one after the other along `dim`; all other sizes are equal.

    Args:
        tensors: at least one Tensor, of one dtype and one number of dimensions.
        dim: where; negative counts from the end. Default: 0.
    """
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    output = torch.zeros(shape, dtype=tensors[0].dtype)
    start = 0
    for tensor in tensors:
        size = tensor.shape[dim]
        output.narrow(dim, start, size).copy_(tensor)
        start += size
    return output
