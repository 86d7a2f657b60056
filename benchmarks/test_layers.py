"""Every distinct layer of the networks, forward and backward: checked, timed in turn with torch's in both layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import Layer, distinct_layers
from timing import Interleaved
from torch import Tensor

import fastcnn
from fastcnn import _library

TOLERANCE = 1e-4  # of the largest value: both sides round differently; a wrong kernel is off by far more


def _inputs(layer: Layer, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Layers follow a ReLU: half of their input is zero, none of it negative.
    input = torch.randn(batch, layer.channels, layer.height, layer.width, generator=generator).relu_()
    tensors = [input.to(memory_format=torch.channels_last)]
    if layer.weight is not None:
        fan_in = layer.weight[1] * layer.weight[2] * layer.weight[3]
        weight = torch.randn(layer.weight, generator=generator) * fan_in**-0.5
        tensors += [weight.to(memory_format=torch.channels_last), torch.randn(layer.weight[0], generator=generator)]
    return tensors


def _check(ours: Tensor, theirs: Tensor) -> None:
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < TOLERANCE, f"results differ by {error:.1e} of the largest value; nothing was timed"


def _kernels_of(call: Callable[[], Any]) -> str:
    library = _library.load()
    library.fastcnn_record_kernels(1)
    call()
    library.fastcnn_record_kernels(0)
    return ", ".join(library.fastcnn_recorded_kernels().decode().split())


def _note(
    benchmark: Any, layer: Layer, direction: str, batch: int, threads: int, flop: float, moved: int, kernels: str
) -> None:
    """`flop` of direct convolution, and the bytes `moved` if every tensor is read or written once."""
    info = benchmark.extra_info
    info.update(
        {
            "network": layer.network,
            "layer": layer.name,
            "input": f"{layer.channels}x{layer.height}x{layer.width}",
            "pass": direction,
            "batch": batch,
            "threads": threads,
            "kernels": kernels,
            "flop": flop,
            "bytes": moved,
        }
    )


def _id(layer: Layer) -> str:
    return f"{layer.name}@{layer.channels}x{layer.height}".replace(" ", "")


@pytest.mark.parametrize("layer", distinct_layers(), ids=_id)
def test_forward(benchmark: Any, layer: Layer, batch: int, threads: int) -> None:
    tensors = _inputs(layer, batch)
    with torch.inference_mode(), fastcnn.backends.fallback(False):
        output = layer.ours(*tensors)
        _check(output, layer.theirs(*tensors))
        nchw = [t.contiguous() for t in tensors]
        rivals = {
            "torch channels_last": lambda: layer.theirs(*tensors),
            "torch NCHW": lambda: layer.theirs(*nchw),
        }
        Interleaved(lambda: layer.ours(*tensors), rivals).run(benchmark)
        kernels = _kernels_of(lambda: layer.ours(*tensors))
    moved = 4 * (sum(t.numel() for t in tensors) + output.numel())
    _note(benchmark, layer, "forward", batch, threads, layer.flop(output), moved, kernels)


@pytest.mark.parametrize("layer", distinct_layers(), ids=_id)
def test_backward(benchmark: Any, layer: Layer, batch: int, threads: int) -> None:
    tensors = [t.requires_grad_() for t in _inputs(layer, batch)]
    if layer.channels == 1 and layer.weight is not None:
        tensors[0] = tensors[0].detach()  # an image needs no gradient
    wanted = [t for t in tensors if t.requires_grad]
    with fastcnn.backends.fallback(False):
        ours, theirs = layer.ours(*tensors), layer.theirs(*tensors)
        grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)

        def backward(output: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(output, wanted, grad, retain_graph=True)

        for a, b in zip(backward(ours), backward(theirs), strict=True):
            _check(a, b)
        nchw = [t.detach().contiguous().requires_grad_(t.requires_grad) for t in tensors]
        their_output, nchw_grad = layer.theirs(*nchw), grad.contiguous()
        nchw_wanted = [t for t in nchw if t.requires_grad]
        rivals = {
            "torch channels_last": lambda: backward(theirs),
            "torch NCHW": lambda: torch.autograd.grad(their_output, nchw_wanted, nchw_grad, retain_graph=True),
        }
        Interleaved(lambda: backward(ours), rivals).run(benchmark)
        kernels = _kernels_of(lambda: backward(ours))
    passes = len([t for t in wanted if t.dim() == 4])
    moved = 4 * (sum(t.numel() for t in (*tensors, *wanted)) + ours.numel())
    _note(benchmark, layer, "backward", batch, threads, passes * layer.flop(ours), moved, kernels)
