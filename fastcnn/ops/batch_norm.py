"""batch_norm and batch_norm_relu: the wrappers over torch.ops.fastcnn.batch_norm_train and batch_norm_infer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.ops import _torch


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises each channel to mean 0 and variance 1, then scales and shifts it, as torch.nn.functional.batch_norm.

    ``output = (input - mean) / sqrt(var + eps) * weight + bias``, in training with the mean and the biased variance of
    the batch, which move the running ones: ``running = (1 - momentum) * running + momentum * batch's``, there with the
    unbiased variance; in evaluation with the running ones.

    Args:
        input: Tensor[N, C, ...] of rank 2 or more; float32, float64, bfloat16 or float16; any strides.
        running_mean: Tensor[C], updated in place in training; None only in training.
        running_var: Tensor[C], likewise.
        weight: Tensor[C], or None for 1.
        bias: Tensor[C], or None for 0. Weight, bias and statistics have one dtype: input's, or float32 for half types.
        training: whether the batch's own statistics are used.
        momentum: the batch's share in the running statistics.
        eps: what is added to the variance.

    Returns:
        Tensor[N, C, ...] of input's dtype and memory format.

    Raises:
        RuntimeError: ranks, sizes, dtypes or devices that torch refuses; no running statistics in evaluation.
        ValueError: one value per channel in training, eps not positive in training or negative in evaluation, or only
            one of the running statistics.
        NotImplementedError: a case that only torch's own op covers, with fastcnn.backends.fallback off.

    Numerics: the statistics are summed in float32 over at most 128 rows, shifted by the mean so that a mean far from
    zero does not cancel, and merged in float64; what they normalise is computed in float32, the half types rounding
    once, at the end (float64 throughout for float64). The bits do not depend on the number of threads, and in
    evaluation not on the other images of the batch. One NaN or infinity makes NaN of its whole channel in training.

    Source: Ioffe and Szegedy, Batch Normalization, ICML 2015.
    """
    if _torch.use_torch("batch_norm", input, running_mean, running_var, weight, bias):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps, None, relu=False)


def batch_norm_relu(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor:
    """Computes relu(batch_norm(input, ...) + residual) in the passes that batch_norm takes; see there.

    Args:
        input: as batch_norm's; so are the next seven.
        running_mean: see batch_norm.
        running_var: see batch_norm.
        weight: see batch_norm.
        bias: see batch_norm.
        training: see batch_norm.
        momentum: see batch_norm.
        eps: see batch_norm.
        residual: tensor of input's shape and dtype, added before the ReLU; None for nothing.

    Returns:
        Tensor[N, C, ...] of input's dtype and memory format.

    Raises:
        RuntimeError: as batch_norm; or residual differs from input in shape or dtype.
        ValueError: as batch_norm.
        NotImplementedError: as batch_norm.

    Numerics: as batch_norm. ReLU keeps NaN. For the backward one bit an element is kept beside the input.
    """
    if _torch.use_torch("batch_norm_relu", input, running_mean, running_var, weight, bias, residual):
        output = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return F.relu(output if residual is None else output + residual)
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps, residual, relu=True)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    residual: Tensor | None,
    *,
    relu: bool,
) -> Tensor:
    output: Tensor
    if not training:
        for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
            if statistic is None:
                raise RuntimeError(f"fastcnn::batch_norm: {name} must be defined in evaluation mode")
        output = torch.ops.fastcnn.batch_norm_infer.default(
            input, running_mean, running_var, weight, bias, residual, eps, relu
        )
        return output
    if (running_mean is None) != (running_var is None):
        raise ValueError(
            "fastcnn::batch_norm: running_mean and running_var must either both be None or neither be None"
        )
    if momentum is None:
        raise TypeError("fastcnn::batch_norm: argument 'momentum' must be float, not NoneType")
    output, mean, var = torch.ops.fastcnn.batch_norm_train.default(input, weight, bias, residual, eps, relu)
    # An empty batch leaves the running statistics alone, as in torch.
    if running_mean is not None and running_var is not None and input.numel() > 0:
        track(running_mean, running_var, mean, var, momentum, input, weight)
    return output


def track(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    input: Tensor,
    weight: Tensor | None,
) -> None:
    """Moves the running statistics towards the batch's mean and biased variance, which a layer got from `input`."""
    _check_running(input, weight, running_mean=running_mean, running_var=running_var)
    rows = input.numel() // input.shape[1]
    torch.ops.fastcnn._batch_norm_update.default(running_mean, running_var, mean, var, momentum, rows)


def _check_running(input: Tensor, weight: Tensor | None, **statistics: Tensor) -> None:
    """Raises what the op raises for such tensors in evaluation: in training it never sees the running statistics."""
    size = input.shape[1:2]
    half = input.dtype in (torch.bfloat16, torch.float16)
    expected = weight.dtype if weight is not None else torch.float32 if half else input.dtype
    for name, running in statistics.items():
        if running.shape != size:
            raise RuntimeError(
                f"fastcnn::batch_norm: {name} should contain {input.shape[1]} elements not {running.numel()}; got "
                f"{name} of size {list(running.shape)} for input of size {list(input.shape)}"
            )
        if running.dtype != expected and (weight is not None or running.dtype != input.dtype):
            raise RuntimeError(
                f"fastcnn::batch_norm: mixed dtype: expected scalar type {expected} but found {running.dtype} in {name}"
            )
