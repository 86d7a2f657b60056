"""Batch normalization: subtract the batch's mean, divide by its standard deviation, scale and shift.

After it a channel has mean beta and variance gamma squared. Whether the batch's statistics or the stored ones are
used is told by an argument, as in training or evaluation, and has nothing to do with whether gradients are wanted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcnn.reference.conv2d import relu


def batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float = 1e-5,
    decay: float = 0.9,
    training: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Batch normalization: y = gamma * (x - mean) / sqrt(var + eps) + beta, per channel (the second dimension).

    In training, mean and variance are the batch's, over all dimensions but the second. The variance that normalises
    is the biased one (divided by the number of values n); the one stored for evaluation is unbiased (by n - 1).

    Args:
        x: Tensor[N, C] or Tensor[N, C, ...].
        gamma, beta: Tensor[C], the scale and the shift; None for 1 and 0.
        running_mean, running_var: Tensor[C], the stored statistics; None in training for none to keep.
        eps: keeps the root away from 0. Default: 1e-5.
        decay: how much of the stored statistics a training step keeps; torch's `momentum` is 1 - decay. Default: 0.9.
        training: use the batch's statistics, and update the stored ones. Default: True.

    Returns:
        y of x's shape, and the new running_mean and running_var; the arguments are left as they are.
    """
    if training:
        dims = [dim for dim in range(x.dim()) if dim != 1]
        count = x.numel() // x.shape[1]
        mean = x.mean(dims)
        var = ((x - _per_channel(mean, x)) ** 2).mean(dims)
        if running_mean is not None:
            running_mean = decay * running_mean + (1 - decay) * mean.detach()
        if running_var is not None:
            running_var = decay * running_var + (1 - decay) * var.detach() * count / (count - 1)
    elif running_mean is None or running_var is None:
        raise ValueError("expected running_mean and running_var for evaluation, but got None")
    else:
        mean, var = running_mean, running_var

    y = (x - _per_channel(mean, x)) / torch.sqrt(_per_channel(var, x) + eps)
    if gamma is not None:
        y = y * _per_channel(gamma, x)
    if beta is not None:
        y = y + _per_channel(beta, x)
    return y, running_mean, running_var


def batch_norm_relu(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float = 1e-5,
    decay: float = 0.9,
    training: bool = True,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """max(batch_norm(x) + residual, 0); arguments and results as batch_norm's."""
    y, running_mean, running_var = batch_norm(x, gamma, beta, running_mean, running_var, eps, decay, training)
    return relu(y if residual is None else y + residual), running_mean, running_var


class BatchNorm(nn.Module):
    """Batch normalization as a layer, with the statistics it keeps.

    Args:
        num_features: channels of a convolution's output, or outputs of a linear layer.
        num_dims: 2 for a linear layer's output [N, num_features], 4 for a convolution's [N, num_features, H, W].
    """

    def __init__(self, num_features: int, num_dims: int) -> None:
        """Scale 1, shift 0, stored mean 0 and variance 1."""
        super().__init__()
        if num_dims not in (2, 4):
            raise ValueError(f"expected num_dims to be 2 or 4, but got {num_dims!r}")
        self.num_dims = num_dims
        self.gamma = nn.Parameter(torch.ones(num_features))
        self.beta = nn.Parameter(torch.zeros(num_features))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x, by its own statistics if `self.training`, else by the stored ones."""
        if x.dim() != self.num_dims:
            raise ValueError(f"expected an input of {self.num_dims} dimensions, but got {list(x.shape)}")
        y, mean, var = batch_norm(x, self.gamma, self.beta, self.running_mean, self.running_var, training=self.training)
        if mean is not None and var is not None:
            self.running_mean, self.running_var = mean, var
        return y


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """[C] as [1, C, 1, ...], to meet x."""
    return values.reshape(1, -1, *[1] * (x.dim() - 2))
