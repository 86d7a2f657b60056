"""Gives layers back to torch where that was faster in a measurement."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn

from fastcnn.conversion import layers
from fastcnn.explanation.measure import LayerTime, measure_layers


def keep_faster(model: nn.Module, example: Any) -> None:
    """Times the layers of a converted model on what they get, and keeps torch's where that is faster.

    A batch norm that runs with its ReLU is timed with it, against torch's two.
    """
    of_layer: dict[str, list[LayerTime]] = defaultdict(list)
    for row in measure_layers(model, example):
        if row.measured:
            of_layer[row.name].append(row)
    modules = dict(model.named_modules())
    for name, rows in of_layer.items():
        done = layers.conversion(modules[name])
        if done is None or not done.converted:
            continue
        ours = sum(row.calls * row.ours_total_ms for row in rows)
        theirs = sum(row.calls * row.torch_total_ms for row in rows)
        wrong = next((row.mismatch for row in rows if row.mismatch), None)
        if wrong is not None:
            layers.keep(modules[name], f"its results differ from torch's: {wrong}")
        elif theirs < ours:
            layers.keep(modules[name], f"torch is faster: {theirs:.3g} ms against {ours:.3g} ms")
