"""An Explanation as cells, and as plain text: the package itself needs nothing but torch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fastcnn.explanation.measure import LayerTime
from fastcnn.explanation.reasons import ATEN

if TYPE_CHECKING:
    from fastcnn.explanation.explain import Explanation

SLOWER = 0.95  # ratios below this are more than the noise of a measurement
NOISY = 0.3  # a spread above this is not the layer's
NAMES = 12  # that are listed for a reason
WIDTH = 120  # of the lines below the table
# What the names of kernels begin with, which the layer's kind says already.
_PREFIXES = ("conv2d_", "batch_norm_", "max_pool2d_", "avg_pool2d_", "global_avg_pool2d_")


def columns(explanation: Explanation) -> dict[str, str]:
    """The columns' names, each with "left" or "right"."""
    times = ["ours ms", "torch ms"]
    if explanation.grad:
        times = ["ours fwd ms", "torch fwd ms", "ours bwd ms", "torch bwd ms"]
    right = ["calls", *times, "ratio", "MFLOP", "GFLOP/s"]
    left = ["kernel", *(["backward kernels"] if explanation.grad else []), "why"]
    return {**dict.fromkeys(["layer", "kind", "input"], "left"), **dict.fromkeys(right, "right"),
            **dict.fromkeys(left, "left")}  # fmt: skip


def cells(explanation: Explanation) -> list[list[str]]:
    """A list of texts for each row, in the columns' order."""
    return [_cells(row, explanation) for row in explanation.rows]


def total(explanation: Explanation) -> list[str]:
    """The last row: all calls of the measured layers; ours are torch's where a layer is left torch's."""
    measured = [row for row in explanation.rows if row.measured]
    parts = [("ours_ms", "torch_ms"), ("ours_backward_ms", "torch_backward_ms")][: 1 + explanation.grad]
    times = []
    for ours, theirs in parts:
        runs = (row.calls * getattr(row, theirs if row.name in explanation.kept else ours) for row in measured)
        times += [f"{sum(runs):.2f}", f"{sum(row.calls * getattr(row, theirs) for row in measured):.2f}"]
    runs_ms, flop = explanation.ours_ms, explanation.flop
    ratio = f"{explanation.torch_ms / runs_ms:.2f}" if runs_ms else ""
    rate = f"{flop / runs_ms / 1e6:.0f}" if runs_ms and flop else ""
    calls = str(sum(row.calls for row in measured))
    return ["total", "", "", calls, *times, ratio, f"{flop / 1e6:,.1f}", rate, "", *([""] * explanation.grad), ""]


def sections(explanation: Explanation) -> list[tuple[str, list[str]]]:
    """What is said below the table: title and lines of each part that has any."""
    rows = explanation.rows
    missing = [(row.name, row.why) for row in rows if not row.measured and row.name not in explanation.kept]
    seen = {row.name for row in rows}
    backward = [(row.name, "backward, by the rule") for row in rows if ATEN in row.backward_kernel.split(" + ")]
    parts = [
        ("Results that differ", [f"{row.name}: {row.mismatch}" for row in rows if row.mismatch]),
        ("Fallbacks to torch's kernels", _grouped([(r.name, r.why) for r in rows if _falls_back(r)] + backward)),
        ("Left torch's layers", _grouped([(n, why) for n, why in explanation.kept.items() if n in seen])),
        ("Left torch's layers, and not called", _grouped([i for i in explanation.kept.items() if i[0] not in seen])),
        ("Not fused", _grouped([(name, f"{pattern}: {why}") for name, pattern, why in explanation.unfused])),
        ("Not measured", _grouped(missing)),
        ("Slower than torch's", _slower([row for row in rows if row.name not in explanation.kept])),
        ("Busy machine", _noisy(rows)),
    ]
    return [(title, lines) for title, lines in parts if lines]


def text(explanation: Explanation) -> str:
    """All of it, in lines of a fixed-width font."""
    lines = [explanation.title, *explanation.setting, ""]
    if not explanation.rows:
        return "\n".join([*lines, "no layer that fastcnn knows was called"])
    names = columns(explanation)
    body = [list(names), *cells(explanation), total(explanation)]
    widths = [max(len(row[i]) for row in body) for i in range(len(names))]
    rule = "-" * (sum(widths[:-1]) + 2 * len(widths) - 2 + len("why"))
    for index, row in enumerate(body):
        padded = (
            cell.rjust(width) if side == "right" else cell.ljust(width)
            for cell, width, side in zip(row, widths, names.values(), strict=True)
        )
        lines += [rule] if index in (1, len(body) - 1) else []
        lines.append("  ".join(padded).rstrip())
    for title, part in sections(explanation):
        lines += ["", f"{title}:", *(wrapped for line in part for wrapped in _wrap(line))]
    return "\n".join(lines)


def _cells(row: LayerTime, explanation: Explanation) -> list[str]:
    times = [row.ours_ms, row.torch_ms]
    times += [row.ours_backward_ms, row.torch_backward_ms] if explanation.grad else []
    reason = explanation.kept.get(row.name)
    kernels = [_short(row.kernel), *([_short(row.backward_kernel)] if explanation.grad else [])]
    if reason is not None:
        kernels = ["torch's layer"] * len(kernels)
    return [
        row.name,
        row.kind,
        f"{'x'.join(map(str, row.shape))}{'' if row.layout in ('channels_last', '') else f' {row.layout}'}",
        str(row.calls),
        *(f"{ms:.3f}" if row.measured else "" for ms in times),
        (f"{row.ratio:.2f}" + ("!" if row.mismatch else "")) if row.measured else "",
        f"{row.flop / 1e6:,.1f}" if row.flop else "",
        f"{row.gflops:.0f}" if row.gflops else "",
        *kernels,
        row.mismatch or reason or row.why,
    ]


def _short(kernels: str) -> str:
    names = []
    for name in kernels.split(" + "):
        prefix = next((p for p in _PREFIXES if name.startswith(p)), "")
        names.append("torch's own" if name == ATEN else name.removeprefix(prefix))
    return " + ".join(names)


def _falls_back(row: LayerTime) -> bool:
    return row.measured and ATEN in row.kernel.split(" + ")


def _slower(rows: Sequence[LayerTime]) -> list[str]:
    """What the slower layers cost, and which cost most."""
    slower = [(row.calls * (row.ours_total_ms - row.torch_total_ms), row) for row in rows if row.ratio < SLOWER]
    if not slower:
        return []
    slower.sort(key=lambda pair: -pair[0])
    lost = sum(ms for ms, _ in slower)
    most = _names([f"{row.name} {row.ratio:.2f}" for _, row in slower])
    layers = "1 layer has" if len(slower) == 1 else f"{len(slower)} layers have"
    return [
        f"{layers} a ratio below {SLOWER}, and lose {lost:.2f} ms together: {most}",
        "fastcnn.convert(model, example) measures that, and leaves such layers torch's",
    ]


def _noisy(rows: Sequence[LayerTime]) -> list[str]:
    noisy, measured = sum(row.spread > NOISY for row in rows), sum(row.measured for row in rows)
    if 4 * noisy < measured or not noisy:
        return []
    return [
        f"the times of {noisy} of {measured} layers varied by more than {100 * NOISY:.0f} % while they were measured: "
        "something else uses this machine; ratios of small layers mean little until it is idle"
    ]


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """One line a reason: the reason, and the layers that it holds for."""
    layers: dict[str, list[str]] = {}
    for name, reason in pairs:
        layers.setdefault(reason, []).append(name)
    return [f"{reason}: {_names(list(dict.fromkeys(names)))}" for reason, names in layers.items()]


def _names(names: Sequence[str]) -> str:
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more} more" if more > 0 else "")


def _wrap(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False)
