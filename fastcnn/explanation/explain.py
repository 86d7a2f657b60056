"""explain: what a model does with fastcnn, layer by layer, as a table."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from fastcnn import _library
from fastcnn._machine import cpu_name
from fastcnn.conversion.convert import carry_out
from fastcnn.conversion.plan import plan
from fastcnn.explanation import page, table
from fastcnn.explanation.capture import check
from fastcnn.explanation.layers import is_ours
from fastcnn.explanation.measure import SECONDS, LayerTime, measure_layers


@dataclass(frozen=True)
class Explanation:
    """What explain found; str() is its table as plain text.

    Attributes:
        title: the model's name.
        setting: lines that say what was measured, and on what.
        rows: a LayerTime for each layer and shape that it was called with, in order of the first call.
        unfused: (layer, pattern, reason) for each batch norm that could run together with the ReLU after it and does
            not.
        kept: layers of a kind that fastcnn has, left torch's, with the reason.
        grad: whether the backward pass was measured too.
    """

    title: str
    setting: Sequence[str]
    rows: Sequence[LayerTime]
    unfused: Sequence[tuple[str, str, str]] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    grad: bool = False

    @property
    def ours_ms(self) -> float:
        """Time of all calls of the measured layers as the model runs them, backward included where measured, in ms.

        That is with fastcnn's ops, but for layers that are left torch's.
        """
        times = ((row, row.torch_total_ms if row.name in self.kept else row.ours_total_ms) for row in self.rows)
        return sum(row.calls * ms for row, ms in times if row.measured)

    @property
    def torch_ms(self) -> float:
        """The same with torch's ops."""
        return sum(row.calls * row.torch_total_ms for row in self.rows if row.measured)

    @property
    def flop(self) -> int:
        """FLOP of all calls of the measured layers."""
        return sum(row.calls * row.flop for row in self.rows)

    def __str__(self) -> str:
        """The table, and below it fallbacks, layers that are not fused and the like, with reasons."""
        return table.text(self)

    def to_html(self) -> str:
        """The same as one HTML page, which needs no other file and no network."""
        return page.html(self)


def explain(
    model: nn.Module, example: Any, *, grad: bool | None = None, seconds: float = SECONDS, title: str | None = None
) -> Explanation:
    """Prints a table of a model's layers: kernel and why, time with fastcnn's op and with torch's, measured here.

    A model of torch's layers is explained as fastcnn.convert would make it, on a copy that shares its parameters; one
    that cannot be copied layer by layer, with nothing fused. A model with layers of fastcnn is explained as it is.
    Layers are convolutions, poolings and batch norms that are modules; what a forward does by functions is not seen.

    The model is run once and left as it was: running statistics, gradients, hooks (which are not called), random
    states and training flags, even where it raises; fastcnn.explanation.measure_layers says how.

    Args:
        model: the network; in training mode the backward pass is timed too.
        example: what to run it on: a Tensor, or a tuple or dict of arguments.
        grad: whether to time the backward pass. Default: model.training.
        seconds: about how long to measure.
        title: what to call the model. Default: its class.

    Returns:
        An Explanation: its rows, its text by str(), its page by to_html().

    Raises:
        TypeError: model is no torch.nn.Module, or in TorchScript; example is nothing to call it with.
        ValueError: the model has lazy parameters that are not initialized; seconds is not positive.
        NotImplementedError: tensors on the meta device.
        Exception: whatever the model raises.

    Numerics: times are medians of at least 5 blocks of calls, ours and torch's in turn, of one layer at a time with
    its tensors in the caches that they fit in; in the model, layers that move much memory take longer on both sides.
    """
    check(model, example)
    grad = model.training if grad is None else grad
    shown, notes = _as_converted(getattr(model, "_orig_mod", model))
    rows = measure_layers(shown, example, grad=grad, seconds=seconds)
    unfused, kept = _plan(shown)
    found = Explanation(
        title=title or type(model).__name__,
        setting=[*_setting(model, example, grad), *notes],
        rows=rows,
        unfused=unfused,
        kept=kept,
        grad=grad,
    )
    print(found)
    return found


def _setting(model: nn.Module, example: Any, grad: bool) -> list[str]:
    tensors = [t for t in _pytree.tree_leaves(example) if isinstance(t, Tensor)]
    inputs = ", ".join(f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors)
    threads = torch.get_num_threads()
    kernels = _library.load().fastcnn_cpu_capability().decode()
    mode = "training" if model.training else "evaluation"
    what = "forward and backward" if grad else "forward"
    return [
        f"input {inputs}; {mode} mode, {what}; channels_last weights on both sides",
        f"{cpu_name()}, {threads} thread{'s' if threads != 1 else ''}, {kernels} kernels, torch {torch.__version__}",
        "ms: medians for one call, fastcnn's and torch's in turn; ratio above 1: fastcnn is faster",
    ]


def _as_converted(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The model itself where it has layers of ours, else a converted copy; and what has to be said about it."""
    if any(is_ours(module) for module in model.modules()):
        return model, []
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    shared.update({id(b): b for b in model.buffers()})
    try:
        twin = copy.deepcopy(model, shared)
    except Exception as error:  # whatever a class of the user's raises when it is copied
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return model, [f"shown without fusing, as the model cannot be copied to convert it: {reason}"]
    shared_modules = {*model.modules()}.intersection(twin.modules())
    if shared_modules:
        return model, [f"shown without fusing, as copying the model does not copy its {_names(shared_modules)}"]
    carry_out(plan(twin), twin)
    return twin, ["shown as fastcnn.convert would make it; the model itself is as it was"]


def _names(modules: set[nn.Module]) -> str:
    return ", ".join(sorted({type(module).__name__ for module in modules}))


def _plan(model: nn.Module) -> tuple[list[tuple[str, str, str]], dict[str, str]]:
    found = plan(model)
    return [(one.name, one.pattern, one.reason) for one in found.unfused], dict(found.kept)
