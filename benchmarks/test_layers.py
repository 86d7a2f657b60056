"""Every distinct layer of the networks, each pass of it: checked, timed in turn with torch's in both layouts.

Ours runs with the fallback off, and by the default rule as well where that chooses other kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import Layer, distinct_layers
from timing import Interleaved
from torch import Tensor

import fastcnn
from fastcnn.explanation.reasons import recorded

TOLERANCE = 1e-4  # of the largest value: both sides round differently; a wrong kernel is off by far more
ROUNDINGS = 2.5  # of the result's dtype, where that is a half type
NORM_TOLERANCE = 1e-3  # of the norm, where ReLU passes a gradient or not by the rounding of a value near zero
# What each pass takes the gradient of, by its place among the layer's tensors.
LEARNED = {"gradient of input": [0], "gradient of weight": [1], "backward": [0, 1, 2]}


def _check(layer: Layer, ours: Tensor, theirs: Tensor) -> None:
    difference, wrong = ours.float() - theirs.float(), "nothing was timed"
    rounding = ROUNDINGS * torch.finfo(theirs.dtype).eps
    if layer.op == "batch_norm_relu":
        error = difference.norm() / theirs.float().norm()
        assert error < max(NORM_TOLERANCE, rounding), f"results differ by {error:.1e} of the norm; {wrong}"
    else:
        error = difference.abs().max() / theirs.abs().max()
        assert error < max(TOLERANCE, rounding), f"results differ by {error:.1e} of the largest value; {wrong}"


def _kernels_of(call: Callable[[], Any]) -> str:
    return ", ".join(recorded(call))


def _id(value: Any) -> str:
    if isinstance(value, Layer):
        return f"{value.name}@{value.channels}x{value.height}".replace(" ", "")
    return str(value).replace(" ", "_")


def backward_cases() -> list[tuple[Layer, str]]:
    cases = []
    for layer in distinct_layers():
        if layer.op == "conv2d":
            # An image needs no gradient.
            cases += [(layer, "gradient of input")] if layer.channels > 3 else []
            cases += [(layer, "gradient of weight")]
        elif layer.op != "concat":  # whose gradient is a view
            cases += [(layer, "backward")]
    return cases


def _row(layer: Layer, direction: str, batch: int, threads: int, moved: list[Tensor], **kernels: str) -> dict[str, Any]:
    """What the report needs of a benchmark; `moved` are the tensors that it reads or writes, once each."""
    return {
        **layer.fields(),
        "pass": direction,
        "batch": batch,
        "threads": threads,
        **kernels,
        "flop": layer.flop(batch),
        "bytes": sum(t.numel() * t.element_size() for t in moved),
    }


@pytest.mark.parametrize("layer", distinct_layers(), ids=_id)
@pytest.mark.parametrize("direction", ["forward"])
def test_forward(
    benchmark: Any, layer: Layer, direction: str, batch: int, threads: int, dtype: torch.dtype, budget: float
) -> None:
    tensors = layer.tensors(batch, dtype)
    nchw = [t.contiguous() for t in tensors]

    def ours() -> Tensor:
        return layer.ours(*tensors)

    rivals = {"torch channels_last": lambda: layer.theirs(*tensors), "torch NCHW": lambda: layer.theirs(*nchw)}
    with torch.inference_mode():
        expected = layer.theirs(*nchw)  # more exact than torch channels_last where the two differ: batch norm
        _check(layer, ours(), expected)
        kernels_by_rule = _kernels_of(ours)
        with fastcnn.backends.fallback(False):
            _check(layer, ours(), expected)
            kernels = _kernels_of(ours)
            Interleaved(ours, rivals, budget, ours if kernels_by_rule != kernels else None).run(benchmark)
    benchmark.extra_info.update(
        _row(layer, direction, batch, threads, [*tensors, expected], kernels=kernels, kernels_by_rule=kernels_by_rule)
    )


def _backward_of(
    op: Callable[..., Tensor], tensors: list[Tensor], learned: list[int], layout: torch.memory_format
) -> Callable[[], tuple[Tensor, ...]]:
    """The gradients of op's output by the learned tensors; its forward runs here, once."""
    tensors = [t.detach().clone(memory_format=torch.preserve_format) for t in tensors]
    if layout == torch.contiguous_format:
        tensors = [t.contiguous() for t in tensors]
    wanted = [tensors[i].requires_grad_() for i in learned]
    output = op(*tensors)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    grad = grad.to(output.device, output.dtype, memory_format=layout)
    return lambda: torch.autograd.grad(output, wanted, grad, retain_graph=True)


@pytest.mark.parametrize(("layer", "direction"), backward_cases(), ids=_id)
def test_backward(
    benchmark: Any, layer: Layer, direction: str, batch: int, threads: int, dtype: torch.dtype, budget: float
) -> None:
    tensors, nhwc = layer.tensors(batch, dtype), torch.channels_last
    learned = [i for i in LEARNED[direction] if i < len(tensors)]
    by_rule = _backward_of(layer.ours, tensors, learned, nhwc)
    with fastcnn.backends.fallback(False):
        ours = _backward_of(layer.ours, tensors, learned, nhwc)
    rivals = {
        "torch channels_last": _backward_of(layer.theirs, tensors, learned, nhwc),
        "torch NCHW": _backward_of(layer.theirs, tensors, learned, torch.contiguous_format),
    }
    for a, b, c in zip(ours(), by_rule(), rivals["torch NCHW"](), strict=True):
        _check(layer, a, c)
        _check(layer, b, c)
    kernels, kernels_by_rule = _kernels_of(ours), _kernels_of(by_rule)
    Interleaved(ours, rivals, budget, by_rule if kernels_by_rule != kernels else None).run(benchmark)
    moved = [*tensors, layer.theirs(*(t.to("meta") for t in tensors))]
    if layer.op != "conv2d":
        moved += [tensors[i] for i in learned]
    benchmark.extra_info.update(
        _row(layer, direction, batch, threads, moved, kernels=kernels, kernels_by_rule=kernels_by_rule)
    )
