"""concat: the wrapper over torch.ops.fastcnn.concat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcnn.ops import _torch


def concat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Joins tensors along one dimension, as torch.cat.

    Args:
        tensors: sequence of Tensor[...], alike in every size but that of `dim`; dtypes are promoted as torch does.
            Empty tensors of shape [0] are skipped, as torch.cat does.
        dim: the dimension to join along, counted from the end where negative.

    Returns:
        Tensor[...] whose size in `dim` is the sum of the sizes; channels_last where every tensor suggests it.

    Raises:
        RuntimeError: sizes, ranks or devices that do not agree, or an empty list (ValueError in torch 2.14).
        IndexError: `dim` outside the tensors' rank.

    Numerics: values are copied, bit for bit where the dtype stays.
    """
    if _torch.use_torch("concat", *tensors):
        return torch.cat(tuple(tensors), dim)
    output: Tensor = torch.ops.fastcnn.concat.default(list(tensors), dim)
    return output
