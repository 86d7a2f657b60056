"""Concat."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastcnn import ops


class Concat(nn.Module):
    """Joins a sequence of tensors along one dimension; see fastcnn.ops.concat.

    Args:
        dim: the dimension to join along; 1, the channels, by default.
    """

    def __init__(self, dim: int = 1) -> None:
        """Makes the layer; see the class."""
        super().__init__()
        self.dim = dim

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """Joins `tensors`, alike in every size but that of `dim`."""
        return ops.concat(tensors, self.dim)

    def extra_repr(self) -> str:
        """What repr() shows between the brackets."""
        return f"dim={self.dim}"
