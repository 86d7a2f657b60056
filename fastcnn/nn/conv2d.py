"""Conv2d."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn import ops


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d over fastcnn.ops.conv2d, with channels_last weights and optionally ReLU in the same pass.

    Takes torch.nn.Conv2d's arguments, draws its initial weights from torch's random stream as torch.nn.Conv2d does,
    and has the same state_dict.

    Args:
        *args: torch.nn.Conv2d's.
        activation: None, or 'relu' to apply max(x, 0) to the output.
        **kwargs: torch.nn.Conv2d's.

    Raises:
        ValueError: an unknown activation, or arguments that torch.nn.Conv2d refuses.
    """

    # Of the class too: fastcnn.convert makes layers of torch's, which may have an `activation` of their own.
    _fused_activation: str | None = None

    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        """Makes the layer; see the class."""
        if activation not in (None, "relu"):
            raise ValueError(f"fastcnn.nn.Conv2d: expected activation to be None or 'relu', but got {activation!r}")
        super().__init__(*args, **kwargs)
        self._fused_activation = activation
        # .to() sets the strides of a one-channel weight too, where .contiguous() would leave them.
        self.weight = nn.Parameter(self.weight.detach().to(memory_format=torch.channels_last))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch.nn.Module's; a weight about to be pruned becomes contiguous, as torch.nn.utils.prune flattens it."""
        if name == "weight_orig" and param is not None:
            param.data = param.data.contiguous()
        super().register_parameter(name, param)

    def forward(self, input: Tensor) -> Tensor:
        """Convolves Tensor[N, C, H, W] or Tensor[C, H, W]; see fastcnn.ops.conv2d."""
        return self._conv_forward(input, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return ops.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups, self._fused_activation)

    def extra_repr(self) -> str:
        """What repr() shows between the brackets."""
        text, activation = str(super().extra_repr()), self._fused_activation  # type: ignore[no-untyped-call]
        return text if activation is None else f"{text}, activation={activation!r}"
