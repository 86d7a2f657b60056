"""Pooling modules."""

from __future__ import annotations

from torch import Tensor, nn

from fastcnn import ops


class MaxPool2d(nn.MaxPool2d):
    """torch.nn.MaxPool2d over fastcnn.ops.max_pool2d; the same arguments."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Pools Tensor[N, C, H, W] or Tensor[C, H, W]; see fastcnn.ops.max_pool2d."""
        return ops.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class AvgPool2d(nn.AvgPool2d):
    """torch.nn.AvgPool2d over fastcnn.ops.avg_pool2d; the same arguments."""

    def forward(self, input: Tensor) -> Tensor:
        """Pools Tensor[N, C, H, W] or Tensor[C, H, W]; see fastcnn.ops.avg_pool2d."""
        return ops.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """torch.nn.AdaptiveAvgPool2d over fastcnn.ops.adaptive_avg_pool2d; the same arguments."""

    def forward(self, input: Tensor) -> Tensor:
        """Pools Tensor[N, C, H, W] or Tensor[C, H, W]; see fastcnn.ops.adaptive_avg_pool2d."""
        return ops.adaptive_avg_pool2d(input, self.output_size)


class GlobalAvgPool2d(AdaptiveAvgPool2d):
    """The mean of each channel: AdaptiveAvgPool2d(1), Tensor[N, C, H, W] to Tensor[N, C, 1, 1]."""

    def __init__(self) -> None:
        """Takes no arguments."""
        super().__init__(1)

    def extra_repr(self) -> str:
        """Nothing: there are no arguments to show."""
        return ""
