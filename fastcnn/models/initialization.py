"""The textbook's initial weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def initialize(model: nn.Module) -> nn.Module:
    """Draws the weights of every Conv2d and Linear in `model` from Xavier's uniform distribution, in place.

    Weights of shape [out, in, kh, kw] become uniform in [-b, b], b = sqrt(6 / ((in + out) * kh * kw)); biases and
    everything else stay as they are. The values depend on torch's seed and the shapes only, not on the layers the
    network is built from nor on their memory format.

    Args:
        model: any module.

    Returns:
        `model` itself.

    Source: Glorot, Bengio: Understanding the difficulty of training deep feedforward neural networks. AISTATS 2010.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            # torch fills a tensor in memory order, so a channels_last weight is drawn contiguous, then copied.
            drawn = torch.empty_like(module.weight, memory_format=torch.contiguous_format)
            module.weight.copy_(nn.init.xavier_uniform_(drawn))
    return model
