"""BatchNorm1d, BatchNorm2d, BatchNormReLU2d, and their conversion to synchronised batch norm."""

from __future__ import annotations

from typing import Any, NoReturn

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastcnn import ops


def _refuse_conversion(module: nn.Module) -> NoReturn:
    raise NotImplementedError(
        f"torch's conversion of {type(module).__name__} (torch.nn.SyncBatchNorm.convert_sync_batchnorm, or "
        "quantization) would drop its ReLU without a word; for synchronised batch norm use "
        "fastcnn.nn.convert_sync_batchnorm(model)"
    )


# torch.nn.SyncBatchNorm.convert_sync_batchnorm asks each batch norm whether it has a qconfig, and nothing but it and
# quantization does: the one place where the ReLU's loss can be noticed.
_qconfig = property(_refuse_conversion)


class BatchNorm1d(nn.BatchNorm1d):
    """torch.nn.BatchNorm1d over fastcnn.ops.batch_norm; the same arguments, parameters and buffers."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises Tensor[N, C] or Tensor[N, C, L]; see fastcnn.ops.batch_norm."""
        self._check_input_dim(input)
        return ops.batch_norm(input, *arguments(self))


class BatchNorm2d(nn.BatchNorm2d):
    """torch.nn.BatchNorm2d over fastcnn.ops.batch_norm; the same arguments, parameters and buffers."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises Tensor[N, C, H, W]; see fastcnn.ops.batch_norm."""
        self._check_input_dim(input)
        return ops.batch_norm(input, *arguments(self))


class BatchNormReLU2d(nn.BatchNorm2d):
    """torch.nn.BatchNorm2d followed by ReLU, and before it optionally by the addition of a residual, in the same pass.

    Takes torch.nn.BatchNorm2d's arguments and has its state_dict.
    """

    qconfig = _qconfig

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Computes relu(batch_norm(input) + residual) of Tensor[N, C, H, W]; see fastcnn.ops.batch_norm_relu."""
        self._check_input_dim(input)
        return ops.batch_norm_relu(input, *arguments(self), residual)


class SyncBatchNormReLU2d(nn.SyncBatchNorm):
    """torch.nn.SyncBatchNorm followed by ReLU: what convert_sync_batchnorm makes of BatchNormReLU2d."""

    qconfig = _qconfig

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Computes relu(sync_batch_norm(input) + residual) of Tensor[N, C, H, W]."""
        output = super().forward(input)
        return F.relu(output if residual is None else output + residual)


def convert_sync_batchnorm(module: nn.Module, process_group: Any = None) -> nn.Module:
    """Replaces every batch norm in a model by torch.nn.SyncBatchNorm, a BatchNormReLU2d by one that keeps its ReLU.

    Args:
        module: the model, changed in place; or a batch norm.
        process_group: the processes that share statistics; all of them by default.

    Returns:
        The model, or the layer that stands for the batch norm. The state_dict keeps its keys.
    """
    if isinstance(module, (BatchNormReLU2d, SyncBatchNormReLU2d)):
        sync = SyncBatchNormReLU2d(
            module.num_features,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
            process_group,
            bias=module.bias is not None,
        )
        # The tensors themselves, as torch does it: an optimizer that holds them goes on holding the right ones.
        sync._parameters.update(module._parameters)
        sync._buffers.update(module._buffers)
        return sync.train(module.training)
    if isinstance(module, _BatchNorm):
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)
        return converted
    for name, child in list(module.named_children()):
        module.add_module(name, convert_sync_batchnorm(child, process_group))
    return module


def arguments(
    module: _BatchNorm,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, bool, float, float]:
    """Counts the batch, and gives what torch.nn's forward passes to F.batch_norm after the input."""
    momentum = 0.0 if module.momentum is None else module.momentum
    if module.training and module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:  # the average of all batches so far
            momentum = 1.0 / float(module.num_batches_tracked)
    track = not module.training or module.track_running_stats
    return (
        module.running_mean if track else None,
        module.running_var if track else None,
        module.weight,
        module.bias,
        module.training or (module.running_mean is None and module.running_var is None),
        momentum,
        module.eps,
    )
