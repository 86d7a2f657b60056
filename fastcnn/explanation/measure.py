"""measure_layers: the time of every layer of a model with our ops and with torch's, and which kernels ran and why."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.explanation import reasons
from fastcnn.explanation.capture import Call, capture, check
from fastcnn.explanation.layers import conv2d_geometry, take_out
from fastcnn.explanation.timing import blocks_ms, spread

SECONDS = 20.0
# Of the difference's norm over the norm of torch's result, by dtype. Winograd's algorithm stays below 1e-5. Gradients
# may differ by the root of it: where a ReLU's input is a rounding error from 0, a whole gradient passes or does not.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
HALF_TOLERANCE = 1e-2


@dataclass(frozen=True)
class LayerTime:
    """What one layer does for inputs of one shape; all times are medians for one call, in ms.

    Attributes:
        name: the layer's qualified name in the model.
        kind: the fastcnn.nn module that stands for it.
        shape: its input's; of the first one where there are several.
        dtype: its input's.
        layout: its input's: "channels_last", "contiguous" or "strided".
        calls: how often the model calls the layer so.
        kernel: the kernels of ours that ran forward; "aten" is torch's own, run by our op; "" where none could be run.
        why: why those, in words; where nothing was measured, why not.
        backward_kernel: those that ran backward; "" where no gradient was asked for.
        ours_ms: forward, with fastcnn's op; NaN where the layer cannot be measured, and so are the other times.
        torch_ms: forward, with torch's, on the same tensors.
        ours_backward_ms: backward; 0 where no gradient was asked for.
        torch_backward_ms: likewise.
        spread: how much the times of one side varied: the distance of their quartiles over their median.
        flop: of a forward and, where measured, backward call, as torch's FlopCounterMode counts: convolutions only.
        mismatch: how far both results are apart, where that is more than rounding explains; else "".
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    layout: str
    calls: int
    kernel: str = ""
    why: str = ""
    backward_kernel: str = ""
    ours_ms: float = math.nan
    torch_ms: float = math.nan
    ours_backward_ms: float = math.nan
    torch_backward_ms: float = math.nan
    spread: float = 0.0
    flop: int = 0
    mismatch: str = ""

    @property
    def ours_total_ms(self) -> float:
        """Forward and backward with fastcnn's op, in ms."""
        return self.ours_ms + self.ours_backward_ms

    @property
    def torch_total_ms(self) -> float:
        """Forward and backward with torch's, in ms."""
        return self.torch_ms + self.torch_backward_ms

    @property
    def measured(self) -> bool:
        """Whether there are times."""
        return not math.isnan(self.ours_total_ms)

    @property
    def ratio(self) -> float:
        """Torch's time over ours: above 1 fastcnn is faster."""
        return self.torch_total_ms / self.ours_total_ms

    @property
    def gflops(self) -> float:
        """GFLOP/s of ours; 0 for layers without FLOP."""
        return self.flop / self.ours_total_ms / 1e6 if self.flop else 0.0


def measure_layers(
    model: nn.Module, example: Any, *, grad: bool | None = None, seconds: float = SECONDS, sure_above: float = 0.0
) -> list[LayerTime]:
    """Runs a model once and times each layer that fastcnn knows, with our op and with torch's in turn.

    The run leaves the model as it was: its buffers (running statistics, num_batches_tracked) are exchanged for copies
    meanwhile, its hooks are taken off and not called, random states, attributes and training flags are put back, and no
    gradient is stored; so it is too where the model raises. Each layer is then timed by itself on new random numbers of
    the same shape, strides and dtype, both sides under the switches in force and on channels_last weights.

    Args:
        model: a network of torch's layers, of fastcnn's, or of both.
        example: what to run it on: a Tensor, or a tuple or dict of arguments.
        grad: whether to time the backward pass too. Default: model.training.
        seconds: about how long to measure; a layer is timed for 5 rounds at least, alike layers once.
        sure_above: layers whose ratio is below this are measured four times more, after all others, all four together
            as long as the first time, and the middle one of their five ratios counts. So what slows the machine down
            while a layer is measured once decides nothing. Default: each is measured once.

    Returns:
        One LayerTime for each layer and shape that it was called with, in order of the first call.

    Raises:
        TypeError: model is no torch.nn.Module, or in TorchScript; example is nothing to call it with.
        ValueError: the model has lazy parameters that are not initialized; seconds is not positive.
        NotImplementedError: tensors on the meta device.
        Exception: whatever the model raises.

    Numerics: before it is timed each result is compared with torch's: the norm of the difference is at most 1e-4 of
    that of torch's result in float32 (1e-10 in float64, 1e-2 in the half types; gradients: the root of that, as ReLU
    passes or stops a whole gradient where its input is within rounding of 0). Where it is more, `mismatch` says so.
    """
    check(model, example)
    if not seconds > 0:
        raise ValueError(f"fastcnn.explain: expected seconds to be positive, but got {seconds}")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    grad = model.training if grad is None else grad
    calls = capture(model, example, grad)
    plans = [_plan(call, grad) for call in calls]
    distinct = {key: (call, row) for call, (key, row) in zip(calls, plans, strict=True) if key is not None}
    budget = seconds / max(1, len(distinct))
    known = {key: [_measure(call, row, grad, budget)] for key, (call, row) in distinct.items()}
    unsure = [key for key, (first,) in known.items() if first.measured and first.ratio < sure_above]
    for key in unsure * 4:
        known[key].append(_measure(*distinct[key], grad, budget / 4))
    middle = {key: _middle(rows) for key, rows in known.items()}
    return [row if key is None else replace(middle[key], name=row.name, calls=row.calls) for key, row in plans]


def _middle(rows: list[LayerTime]) -> LayerTime:
    """The one of a layer's measurements that has the middle ratio; the first where not all gave one."""
    if not all(row.measured for row in rows):
        return rows[0]
    return sorted(rows, key=lambda row: row.ratio)[len(rows) // 2]


def _plan(call: Call, grad: bool) -> tuple[Any, LayerTime]:
    """What to measure the call as, None for nothing, and its row without times."""
    spec = call.inputs[0] if call.inputs else None
    row = LayerTime(
        name=call.name,
        kind=call.kind,
        shape=spec.shape if spec else (),
        dtype=spec.dtype if spec else None,
        layout=spec.layout if spec else "",
        calls=call.times,
    )
    if call.foreign:
        return None, replace(row, why=f"left torch's: {call.foreign} has a forward of its own")
    if call.problem:
        return None, replace(row, why=f"not measured: {call.problem}")
    layer = take_out(call.module, call.kind)
    parameters = tuple(
        None if p is None else (tuple(p.shape), p.stride(), p.dtype, p.device, p.requires_grad)
        for p in layer.parameters
    )
    return (layer.kind, layer.settings, parameters, call.inputs, call.training), row


def _measure(call: Call, row: LayerTime, grad: bool, seconds: float) -> LayerTime:
    """Complete a row; what raises becomes its reason."""
    try:
        with torch.random.fork_rng([]), torch.set_grad_enabled(grad):
            return _Measurement(call, grad).row(row, seconds)
    except (RuntimeError, ValueError, TypeError) as error:
        message = str(error).strip().splitlines() or [type(error).__name__]
        return replace(row, why=f"not measured: {message[0]}")


class _Measurement:
    """One layer on random numbers: its kernels, its results on both sides, and their times."""

    def __init__(self, call: Call, grad: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.call, self.layer = call, take_out(call.module, call.kind)
        # With running statistics of their own, which those of a graph that is differentiated later must not share.
        self.timed = take_out(call.module, call.kind)
        self.inputs = [spec.draw(generator) for spec in call.inputs]
        wanted = [t for t in (*self.inputs, *self.layer.parameters) if t is not None and t.requires_grad]
        self.leaves = wanted if grad else []
        self.grad_output = _normal_like(self._theirs(), generator) if self.leaves else None

    def row(self, row: LayerTime, seconds: float) -> LayerTime:
        tensors = (self.inputs, self.layer.parameters)
        results = [self.layer.ours(*tensors), self.layer.theirs(*tensors)]  # autotuning ends with the first call
        kernels = reasons.recorded(self._ours)
        problem = _difference("output", results[0], results[1], 1.0)
        backward: list[str] = []
        if self.leaves:
            problem = problem or self._compare_gradients(results)
            backward = reasons.recorded(lambda: self._gradients(results[0]))
        shares = 2 if self.leaves else 1
        blocks = blocks_ms([self._ours, self._theirs], seconds / shares)
        if self.leaves:
            both = [lambda output=output: self._gradients(output) for output in results]
            blocks += blocks_ms(both, seconds / shares)
        ours, theirs, ours_backward, theirs_backward = [*map(statistics.median, blocks), 0.0, 0.0][:4]
        geometry = None
        module = self.call.module
        if isinstance(module, nn.Conv2d):
            geometry = conv2d_geometry(module, self.inputs[0].shape, results[0].shape)
        return replace(
            row,
            kernel=" + ".join(dict.fromkeys(kernels)),
            why=reasons.why(row.kind, kernels, (*self.inputs, *self.layer.parameters), geometry),
            backward_kernel=" + ".join(dict.fromkeys(backward)),
            ours_ms=ours,
            torch_ms=theirs,
            ours_backward_ms=ours_backward,
            torch_backward_ms=theirs_backward,
            spread=max(map(spread, blocks)),
            flop=self._flop(),
            mismatch=problem,
        )

    def _ours(self) -> Tensor:
        return self.timed.ours(self.inputs, self.layer.parameters)

    def _theirs(self) -> Tensor:
        return self.timed.theirs(self.inputs, self.layer.parameters)

    def _gradients(self, output: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, self.leaves, self.grad_output, retain_graph=True)

    def _compare_gradients(self, results: Sequence[Tensor]) -> str:
        ours, theirs = (self._gradients(output) for output in results)
        found = (_difference("gradient", a, b, 0.5) for a, b in zip(ours, theirs, strict=True))
        return next((text for text in found if text), "")

    def _flop(self) -> int:
        counter = FlopCounterMode(display=False)
        with counter:
            output = self._theirs()
            if self.leaves:
                self._gradients(output)
        return int(counter.get_total_flops())


def _normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    values = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    return torch.empty_like(tensor).copy_(values)


def _difference(what: str, ours: Tensor, theirs: Tensor, power: float) -> str:
    """How far two results are apart, relative to the norm of torch's; "" within the tolerance to that power."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"{what} {tuple(ours.shape)} {ours.dtype}, but torch's {tuple(theirs.shape)} {theirs.dtype}"
    tolerance = TOLERANCE.get(theirs.dtype, HALF_TOLERANCE) ** power
    a, b = (torch.view_as_real(t) if t.is_complex() else t for t in (ours.detach(), theirs.detach()))
    a, b = a.double(), b.double()
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite):
        return f"{what} is finite where torch's is not, or not where it is"
    a, b = a[finite], b[finite]
    scale = float(b.norm())
    error = float((a - b).norm()) / (scale or 1.0)
    return f"{what} differs from torch's by {error:.1e}, tolerance {tolerance:.0e}" if error > tolerance else ""
