"""dense_block: the wrapper over torch.ops.fastcnn.dense_block_train and dense_block_infer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcnn.ops.batch_norm import track


@dataclass(frozen=True)
class DenseLayer:
    """One layer of a dense block: batch norm over the channels before it, ReLU, a 3x3 convolution with padding 1.

    Attributes:
        running_mean: Tensor[C], updated in place in training; None only there.
        running_var: Tensor[C], likewise.
        norm_weight: Tensor[C].
        norm_bias: Tensor[C].
        conv_weight: Tensor[K, C, 3, 3]; K channels are appended.
        conv_bias: Tensor[K].
        momentum: the batch's share in the running statistics.
        eps: what is added to the variance.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    norm_weight: Tensor
    norm_bias: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    momentum: float = 0.1
    eps: float = 1e-5

    def parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is learned, in the op's order."""
        return self.norm_weight, self.norm_bias, self.conv_weight, self.conv_bias


def dense_block(input: Tensor, layers: Sequence[DenseLayer], training: bool = False) -> Tensor:
    """Appends to the input what each layer makes of the input and of all that was appended before it.

    ``features = concat(features, conv2d(relu(batch_norm(features))))`` for each layer, as one op. For the backward pass
    it keeps the features, which are its output, and the batch's statistics, and computes concat, batch norm and ReLU
    again: memory grows with the number of layers, where that of the layers one by one grows with its square.

    Args:
        input: Tensor[N, C, H, W] on the CPU; float32, float64, bfloat16 or float16; any strides.
        layers: the layers, in order. Their tensors are of input's dtype; for half types the batch norms' may be
            float32, and for float32 the convolutions' may be half types, which they are then computed in.
        training: whether the batch's own statistics are used.

    Returns:
        Tensor[N, C + K1 + K2 + ..., H, W] of input's dtype; channels_last if input or the first convolution's weight
        is.

    Raises:
        RuntimeError: ranks, sizes or dtypes that do not fit; no running statistics in evaluation.
        ValueError: one value per channel in training, or eps not positive.
        NotImplementedError: another dtype; differentiating a gradient, which only the layers one by one allow.

    Numerics: as batch_norm_relu and conv2d. A channel's statistics are computed once, from the same values for every
    layer; its gradient is summed over the layers in the accumulation type, from the last layer to the first.

    Source: Huang et al., Densely Connected Convolutional Networks, CVPR 2017; Pleiss et al., Memory-Efficient
    Implementation of DenseNets, 2017.
    """
    parameters = [p for layer in layers for p in layer.parameters()]
    eps = [layer.eps for layer in layers]
    if not training:
        statistics = [s for layer in layers for s in (layer.running_mean, layer.running_var) if s is not None]
        output: Tensor = torch.ops.fastcnn.dense_block_infer.default(input, statistics, parameters, eps)
        return output
    output, mean, var = torch.ops.fastcnn.dense_block_train.default(input, parameters, eps)
    # An empty batch leaves the running statistics alone, as in torch.
    if input.numel() > 0:
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        mean, var = mean.to(wide), var.to(wide)
        features = output.detach()
        for layer in layers:
            if layer.running_mean is not None and layer.running_var is not None:
                c, running = layer.norm_weight.shape[0], (layer.running_mean, layer.running_var)
                track(*running, mean[:c], var[:c], layer.momentum, features[:, :c], layer.norm_weight)
    return output
