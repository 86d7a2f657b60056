"""Gives layers back to torch where that was faster in a measurement."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn

from fastcnn.conversion import layers
from fastcnn.explanation.measure import LayerTime, measure_layers

# Torch's layer is kept where its time is below this of ours. Two measurements of one layer lie within 5 % of each other
# on an idle machine, so that layers between this and 1 would be torch's in one run and ours in the next.
CLEARLY_FASTER = 0.95
# Ratios above this are no near ties. The middle of five decides below: on shared machines one in some twenty
# measurements on two threads was off by a third.
SURE = 1.25


def keep_faster(model: nn.Module, example: Any) -> None:
    """Times the layers of a converted model on what they get, and keeps torch's where that is clearly faster.

    A batch norm that runs with its ReLU is timed with it, against torch's two. A layer of which it is not clear at once
    that ours is faster is measured five times, and the middle ratio counts.
    """
    of_layer: dict[str, list[LayerTime]] = defaultdict(list)
    for row in measure_layers(model, example, sure_above=SURE):
        if row.measured:
            of_layer[row.name].append(row)
    modules = dict(getattr(model, "_orig_mod", model).named_modules())  # as measure_layers names them
    for name, rows in of_layer.items():
        done = layers.conversion(modules[name])
        if done is None or not done.converted:
            continue
        ours = sum(row.calls * row.ours_total_ms for row in rows)
        theirs = sum(row.calls * row.torch_total_ms for row in rows)
        wrong = next((row.mismatch for row in rows if row.mismatch), None)
        if wrong is not None:
            layers.keep(modules[name], f"its results differ from torch's: {wrong}")
        elif theirs < CLEARLY_FASTER * ours:
            layers.keep(modules[name], f"torch is faster: {theirs:.3g} ms against {ours:.3g} ms")
