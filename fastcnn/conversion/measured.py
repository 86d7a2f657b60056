"""Gives layers back to torch where that was faster in a measurement."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn import ops
from fastcnn.conversion import layers
from fastcnn.conversion.plan import plan
from fastcnn.explanation.measure import LayerTime, measure_layers
from fastcnn.explanation.timing import interleaved_ms

_SECONDS = 0.05  # for a batch norm with its ReLU


def keep_faster(model: nn.Module, example: Any) -> None:
    """Times the layers of a converted model on what they get, and keeps torch's where that is faster.

    A batch norm that runs with its ReLU is timed with it, against torch's two.
    """
    residual = {fused.name: "residual" in fused.pattern for fused in plan(model).fused}
    of_layer: dict[str, list[LayerTime]] = defaultdict(list)
    for row in measure_layers(model, example):
        if row.measured:
            of_layer[row.name].append(row)
    modules = dict(model.named_modules())
    pairs: dict[Any, tuple[float, float]] = {}
    for name, rows in of_layer.items():
        module = modules[name]
        done = layers.conversion(module)
        if done is None or not done.converted:
            continue
        ours = theirs = 0.0
        for row in rows:
            times = row.ours_total_ms, row.torch_total_ms
            if name in residual:
                case = (row.shape, row.dtype, row.layout, model.training, residual[name])
                if case not in pairs:
                    pairs[case] = _time_pair(module, *case)
                times = pairs[case]
            ours, theirs = ours + row.calls * times[0], theirs + row.calls * times[1]
        wrong = next((row.mismatch for row in rows if row.mismatch), None)
        if wrong is not None:
            layers.keep(module, f"its results differ from torch's: {wrong}")
        elif theirs < ours:
            layers.keep(module, f"torch is faster: {theirs:.3g} ms against {ours:.3g} ms")


def _time_pair(
    norm: Any, shape: tuple[int, ...], dtype: Any, layout: str, training: bool, residual: bool
) -> tuple[float, float]:
    """Milliseconds of a batch norm with ReLU, and residual, on random numbers: with our op, and with torch's."""

    def fresh() -> Tensor:
        values = torch.randn(shape, dtype=dtype)
        values = values.to(memory_format=torch.channels_last) if layout == "channels_last" else values
        return values.requires_grad_(training)

    input, other, gradient = fresh(), fresh() if residual else None, fresh().detach()
    state = [None if t is None else t.detach().clone() for t in (norm.running_mean, norm.running_var)]
    affine = [None if t is None else t.detach().clone().requires_grad_(training) for t in (norm.weight, norm.bias)]
    arguments: Any = (*state, *affine, norm.training, 0.1, norm.eps)

    def run(output: Tensor) -> None:
        if training:
            output.backward(gradient)

    def ours() -> None:
        run(ops.batch_norm_relu(input, *(*arguments, other)))

    def theirs() -> None:
        output = F.batch_norm(input, *arguments)
        run(F.relu(output if other is None else output.add_(other), inplace=True))

    with torch.set_grad_enabled(training), torch.random.fork_rng():
        fast, plain = interleaved_ms([ours, theirs], _SECONDS)
    return fast, plain
