"""The comparison with other ways to run a network as a report: tables, bars, and one HTML page."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import peers
import torch
from matplotlib import pyplot as plt
from page import Page, Report, folder_name

from fastcnn import _library
from fastcnn._machine import cpu_name, version_of

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
ROWS = "rows.json"  # what the report was made of
OURS, COMPILED = "fastcnn ", "fastcnn compiled"  # our ways begin with it; the one that has targets
APART = 0.15  # a median in company may be off by as much from the one in a process of its own

Row = dict[str, Any]


def is_off(ms: float, alone: float) -> bool:
    """Whether a median in company is not that of a process of its own."""
    return abs(ms / alone - 1) > APART


def _case(row: Row) -> tuple[str, int, int]:
    return row["network"], row["batch"], row["threads"]


def of_case(rows: list[Row], network: str, batch: int, threads: int) -> list[Row]:
    """The rows of one network at one batch and number of threads."""
    return [r for r in rows if _case(r) == (network, batch, threads)]


def best_rival(rows: list[Row]) -> Row | None:
    """The fastest of a case that is not ours."""
    return min((r for r in rows if "ms" in r and not r["peer"].startswith(OURS)), key=lambda r: r["ms"], default=None)


def line(rows: list[Row], network: str, batch: int, threads: int) -> str:
    """A case in one line."""
    case = of_case(rows, network, batch, threads)
    times = ", ".join(f"{r['peer']} {r['ms']:.2f}" if "ms" in r else f"{r['peer']} failed" for r in case)
    return f"{network}, batch {batch}, {threads} threads, ms: {times}"


def _cases(rows: list[Row]) -> list[tuple[str, int, int]]:
    return list(dict.fromkeys(map(_case, rows)))


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(r["peer"] for r in rows))


def _ratio(rows: list[Row], network: str, batch: int, threads: int, rival: str = "") -> float:
    """The time of the best rival, or of the named one, over that of the compiled network; nan where one is missing."""
    case = of_case(rows, network, batch, threads)
    other = next((r for r in case if r["peer"] == rival), None) if rival else best_rival(case)
    mine = next((r for r in case if r["peer"] == COMPILED), None)
    return other["ms"] / mine["ms"] if other and mine and "ms" in other and "ms" in mine else math.nan


@dataclass(frozen=True)
class Target:
    """What compiled networks aim at: a ratio in each of the cases (network, batch), or as their geometric mean."""

    name: str
    bound: float
    cases: tuple[tuple[str, int], ...]
    of_mean: bool = False
    rival: str = ""  # the best one

    def value(self, rows: list[Row], threads: int) -> tuple[float, str]:
        """The mean, or the least ratio and its case; nan where a case is missing."""
        ratios = [(_ratio(rows, *case, threads, self.rival), f"{case[0]}, batch {case[1]}") for case in self.cases]
        if any(math.isnan(ratio) for ratio, _ in ratios):
            return math.nan, ""
        if self.of_mean:
            return statistics.geometric_mean(ratio for ratio, _ in ratios), "mean"
        return min(ratios)


_SEVEN = tuple((network, batch) for batch in (1, 32) for network in peers.OURS)
TARGETS = (
    Target("each of the seven networks, batch 1 and 32", 1.1, _SEVEN),
    Target("the seven networks, batch 1 and 32, geometric mean", 1.5, _SEVEN, of_mean=True),
    Target("VGG-11, batch 32", 2.0, (("vgg11", 32),)),
    Target("LeNet, batch 1, against ONNX Runtime", 2.0, (("lenet", 1),), rival="ONNX Runtime"),
)


def _targets(rows: list[Row]) -> Page:
    lines = []
    for target in TARGETS:
        for threads in dict.fromkeys(r["threads"] for r in rows):
            value, case = target.value(rows, threads)
            verdict = "not measured" if math.isnan(value) else "met" if value >= target.bound else "missed"
            figure = "" if math.isnan(value) else f"{value:.2f}"
            lines.append([target.name, case, verdict, str(threads), f"{target.bound}", figure])
    note = (
        "The rival's time over the compiled network's, the least of the cases or their mean. Where the time goes where "
        "one is missed: docs/benchmarks/README.md."
    )
    return Page("Targets", note, ("target", "worst in", "", "threads", "target is", "figure"), 3, lines)


def _times(rows: list[Row]) -> Page:
    names, lines = _names(rows), []
    for case in _cases(rows):
        of = {r["peer"]: r for r in of_case(rows, *case)}
        rival, ratio = best_rival(list(of.values())), _ratio(rows, *case)
        cells = [f"{of[n]['ms']:.3g}" if "ms" in of.get(n, {}) else "failed" for n in names]
        lines.append([case[0], rival["peer"] if rival else "", str(case[1]), str(case[2]), *cells, f"{ratio:.2f}"])
    columns = ("network", "best rival", "batch", "threads", *(f"{n}, ms" for n in names), "ratio")
    return Page("Times", "Medians; ratio: the best rival's over the compiled network's.", columns, 2, lines)


def _details(rows: list[Row]) -> Page:
    lines = []
    for r in rows:
        head = [r["network"], r["peer"]]
        if "failed" in r:
            lines.append([*head, f"failed: {r['failed']}", str(r["batch"]), str(r["threads"]), "", "", "", "", ""])
            continue
        low, high = r["quartiles"]
        alone = r.get("alone_ms")
        apart = "" if alone is None else f"{alone:.3g}{' !' if is_off(r['ms'], alone) else ''}"
        memory = f"{r['MB']:.0f}" if "MB" in r else ""
        lines.append([*head, r["facts"], str(r["batch"]), str(r["threads"]), f"{r['ms']:.3g}",
                      f"{low:.3g} to {high:.3g}", apart, memory, f"{r['error']:.1e}"])  # fmt: skip
    note = (
        "Settings as read back; quartiles of the blocks; the median in a process of its own, with ! where it lies more "
        "than 15 % apart; growth of the resident memory there; error against float64, of the output's norm."
    )
    columns = ("network", "peer", "read back", "batch", "threads", "ms", "quartiles", "alone, ms", "memory, MB",
               "error")  # fmt: skip
    return Page("Every measurement", note, columns, 3, lines)


def summary(rows: list[Row]) -> list[str]:
    """For each batch and number of threads the geometric mean of our ratios to the best rival, and the least."""
    groups: dict[tuple[str, int, int], list[tuple[float, str]]] = {}
    for network, batch, threads in _cases(rows):
        case = of_case(rows, network, batch, threads)
        rival = best_rival(case)
        for row in (r for r in case if r["peer"].startswith(OURS) and "ms" in r and rival):
            groups.setdefault((row["peer"], batch, threads), []).append((rival["ms"] / row["ms"], network))
    lines = []
    for (peer, batch, threads), ratios in sorted(groups.items()):
        mean, (least, network) = statistics.geometric_mean(r for r, _ in ratios), min(ratios)
        what = f"{peer}, batch {batch}, {threads} threads: the best rival's time over ours"
        lines.append(f"{what}, geometric mean {mean:.2f}, least {least:.2f} ({network})")
    return lines


def _plot(rows: list[Row], batch: int, path: Path) -> None:
    cases, names = [case for case in _cases(rows) if case[1] == batch], _names(rows)
    figure, axis = plt.subplots(figsize=(max(8, 0.8 * len(cases)), 5))
    for place, name in enumerate(names):
        heights = []
        for case in cases:
            of = {r["peer"]: r["ms"] for r in of_case(rows, *case) if "ms" in r}
            heights.append(of["torch eager"] / of[name] if name in of and "torch eager" in of else 0)
        axis.bar(
            [i + 0.8 * (place / len(names) - 0.5) for i in range(len(cases))], heights, 0.8 / len(names), label=name
        )
    labels = [f"{name.removeprefix('torchvision:')}\n{threads} thr" for name, _, threads in cases]
    axis.set_xticks(range(len(cases)), labels, rotation=60, fontsize=7)
    axis.set(ylabel="speed, torch eager = 1", title=f"batch {batch}")
    axis.axhline(1, color="black", linewidth=0.8)
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _command(rows: list[Row]) -> str:
    measured = list(dict.fromkeys(r["network"] for r in rows))
    arguments = []
    if any(name not in measured for name in peers.NETWORKS):
        arguments.append(f"--networks {','.join(measured)}")
    for name, default in (("batch", peers.BATCHES), ("threads", peers.THREADS)):
        values = sorted({r[name] for r in rows})
        if values != list(default):
            arguments.append(f"--{'batches' if name == 'batch' else name} {','.join(map(str, values))}")
    return "make bench-peers" + (f' PEERS_ARGS="{" ".join(arguments)}"' if arguments else "")


def _kernels() -> str:
    return _library.load().fastcnn_cpu_capability().decode()


def _setting() -> str:
    """What rows have to share to stand in one report."""
    versions = ", ".join(f"{name} {version_of(name)}" for name in ("torchvision", "onnxruntime", "openvino"))
    return (
        f"{cpu_name()}, fastcnn kernels {_kernels()}, torch {torch.__version__} "
        f"({torch.backends.cpu.get_cpu_capability()}), {versions}, freed memory kept by the process"
    )


def _folder(out: Path) -> Path:
    return out / folder_name(cpu_name(), _kernels(), "peers")


def held(out: Path) -> list[Row]:
    """The rows of this machine's report under `out`; none of other versions or settings."""
    file = _folder(out) / ROWS
    if not file.exists():
        return []
    report = json.loads(file.read_text())
    if report["setting"] != _setting():
        print(f"{file.parent}: begun anew; what it held was measured with {report['setting']}")
        return []
    rows: list[Row] = report["rows"]
    return rows


def off_cases(rows: list[Row]) -> list[tuple[str, int, int]]:
    """The cases in which a peer's median is not that of a process of its own."""
    return _cases([r for r in rows if "alone_ms" in r and is_off(r["ms"], r["alone_ms"])])


def write(rows: list[Row], out: Path) -> Path:
    """Writes the rows into the report under `out`, beside those that it has of other cases; returns its folder."""
    mpl.use("Agg")
    folder, setting, measured = _folder(out), _setting(), set(_cases(rows))
    folder.mkdir(parents=True, exist_ok=True)
    rows = [r for r in held(out) if _case(r) not in measured] + rows
    rows.sort(key=lambda r: (peers.NETWORKS.index(r["network"]), r["batch"], r["threads"]))
    charts = {batch: f"speed-batch-{batch}.png" for batch in sorted({r["batch"] for r in rows})}
    for batch, name in charts.items():
        _plot(rows, batch, folder / name)
    Report(
        title=f"{cpu_name()}, {_kernels()}: inference against other ways to run a network",
        headline=f"{setting}; measured on {', '.join(sorted({r['date'] for r in rows}))}; float32; blocks of calls in "
        "turn, with a pause before each; outputs checked against float64 before.",
        command=_command(rows),
        pages=[_targets(rows), _times(rows), _details(rows)],
        summary=summary(rows),
        charts=list(charts.values()),
    ).write(folder)
    lines = ",\n".join(json.dumps(r) for r in rows)
    (folder / ROWS).write_text(f'{{"setting": {json.dumps(setting)},\n"rows": [\n{lines}\n]}}\n')
    return folder
