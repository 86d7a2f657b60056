"""Turns what the benchmarks wrote into a page that anyone can read: python benchmarks/report.py benchmark.json

Writes docs/benchmarks/<cpu>/: report.md with the tables, the targets (benchmarks/targets.py) first, ratios.png and
roofline.png, and index.html, which holds all of it in one file.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import targets
import torch
import typer
from matplotlib import pyplot as plt
from page import Page, Report, folder_name
from rich.console import Console
from rich.table import Table

from fastcnn import _library
from fastcnn._machine import cpu_name

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
COPY_BYTES = 256 * 1024 * 1024


def describe_machine(threads: list[int], dtype: str) -> dict[str, Any]:
    """CPU, versions and settings as read back, and for each number of threads FMA peak (GFLOP/s) and copy (GB/s)."""
    library = _library.load()
    before = torch.get_num_threads()
    source, target = torch.randn(COPY_BYTES // 4), torch.empty(COPY_BYTES // 4)
    peaks = {}
    for number in threads:
        torch.set_num_threads(number)
        copies = []
        for _ in range(5):
            started = time.perf_counter()
            target.copy_(source)
            copies.append(2 * COPY_BYTES / (time.perf_counter() - started) / 1e9)
        peaks[str(number)] = {
            "gflops": max(float(library.fastcnn_fma_gflops()) for _ in range(5)),
            "copy_gbs": statistics.median(copies),
            "torch_threads": torch.get_num_threads(),
        }
    torch.set_num_threads(before)
    by_make = ("benchmarks", "--benchmark-")
    arguments = " ".join(argument for argument in sys.argv[1:] if not argument.startswith(by_make))
    return {
        "cpu": cpu_name(),
        "capability": library.fastcnn_cpu_capability().decode(),
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": dtype,
        "float32_precision": torch.get_float32_matmul_precision(),
        "peaks": peaks,
        "command": " ".join(["make bench", *([f'BENCH_ARGS="{arguments}"'] if arguments else [])]),
    }


def _percent_of_peak(row: dict[str, Any], machine: dict[str, Any]) -> str:
    peak = machine["peaks"].get(str(row["threads"]))
    if peak is None or not row.get("bytes"):
        return ""
    seconds = row["ms"]["fastcnn"] / 1e3
    if row["flop"]:
        return f"{100 * row['flop'] / seconds / 1e9 / peak['gflops']:.0f} FMA"
    return f"{100 * row['bytes'] / seconds / 1e9 / peak['copy_gbs']:.0f} copy"


def _targets(rows: list[dict[str, Any]], machine: dict[str, Any]) -> Page:
    lines = [
        [
            r.target.name, r.worst_row, str(r.threads), str(r.rows), str(r.reached), f"{r.mean:.2f}", f"{r.worst:.2f}",
            f"{'at most ' if r.target.at_most else ''}{r.target.bound}{' (mean)' if r.target.of_mean else ''}",
            "met" if r.met else "**missed**",
        ]
        for r in targets.results(rows, machine["dtype"])
    ]  # fmt: skip
    note = (
        "Time of torch channels_last over fastcnn's (training steps: of the fastest of torch's three); memory: "
        "fastcnn's over torch's. A target is met if the worst row reaches it; `reach it` says how many rows do."
    )
    columns = ("target", "worst in", "threads", "rows", "reach it", "mean", "worst", "target is", "")
    return Page("Targets", note, columns, 2, lines)


def _training(rows: list[dict[str, Any]]) -> Page:
    names = ("fastcnn", "torch NCHW", "torch channels_last", "torch.compile")
    lines = []
    for row in (r for r in rows if r["pass"] == "training step"):
        ms = [f"{row['ms'][name]:.1f}" if name in row["ms"] else "" for name in names]
        ratios = [f"{row['ratio']:.2f}", f"{row['ratio_best']:.2f}"]
        lines.append([row["network"], row["best"], str(row["batch"]), str(row["threads"]), *ms, *ratios])
    columns = ("network", "best of torch", "batch", "threads", *(f"{name}, ms" for name in names),
               "ratio to channels_last", "to the best")  # fmt: skip
    return Page("Training steps", "Forward, loss, backward and SGD, in ms.", columns, 2, lines)


def _memory(rows: list[dict[str, Any]]) -> Page:
    lines = [
        [row["network"], str(row["batch"]), str(row["threads"]), *(f"{mb:.1f}" for mb in row["MB"].values()),
         f"{row['of_memory']:.2f}"]
        for row in rows if row["pass"] == "peak memory"
    ]  # fmt: skip
    columns = ("network", "batch", "threads", "fastcnn, MB", "torch channels_last, MB", "ratio")
    note = "Peak of a training step as torch's profiler counts it (benchmarks/memory.py)."
    return Page("Peak memory", note, columns, 1, lines)


def _layers(rows: list[dict[str, Any]], machine: dict[str, Any]) -> Page:
    lines = []
    for row in (r for r in rows if "op" in r):
        ms = row["ms"]
        low, high = row["ratio_quartiles"]
        lines.append(
            [
                row["network"], row["layer"], row["pass"], row["kernels"], row["input"], str(row["batch"]),
                str(row["threads"]), f"{ms['fastcnn']:.3f}", f"{ms['torch channels_last']:.3f}",
                f"{ms['torch NCHW']:.3f}", f"{row['ratio']:.2f}", f"{low:.2f}-{high:.2f}", f"{row['ratio_rule']:.2f}",
                _percent_of_peak(row, machine),
            ]
        )  # fmt: skip
    columns = ("network", "layer", "pass", "kernels", "input", "batch", "threads", "ms", "channels_last, ms",
               "NCHW, ms", "ratio", "quartiles", "by rule", "% of peak")  # fmt: skip
    note = (
        "Medians of interleaved blocks; ratio: torch channels_last over fastcnn, fallback off, and by the default rule."
    )
    return Page("Layers", note, columns, 4, lines)


def pages(rows: list[dict[str, Any]], machine: dict[str, Any]) -> list[Page]:
    """The tables that have rows."""
    found = [_targets(rows, machine), _training(rows), _memory(rows), _layers(rows, machine)]
    return [page for page in found if page.rows]


def _headline(machine: dict[str, Any]) -> str:
    peaks = "; ".join(
        f"{n} threads: {p['gflops']:.0f} GFLOP/s FMA, {p['copy_gbs']:.1f} GB/s copy, torch uses {p['torch_threads']}"
        for n, p in machine["peaks"].items()
    )
    precision = f" at precision {machine['float32_precision']}" if machine["dtype"] == "float32" else ""
    return (
        f"{machine['cpu']}, fastcnn kernels {machine['capability']}, torch {machine['torch']} "
        f"({machine['torch_capability']}), {machine['dtype']}{precision}, input and weights "
        f"channels_last, fallback off if not said otherwise. Measured in the same run: {peaks}."
    )


def _summary(rows: list[dict[str, Any]]) -> list[str]:
    groups: dict[tuple[str, int, int], list[float]] = {}
    for row in (r for r in rows if "ratio" in r):
        groups.setdefault((row["pass"], row["batch"], row["threads"]), []).append(row["ratio"])
    return [
        f"{name}, batch {batch}, {threads} threads: {len(ratios)} layers, geometric mean "
        f"{math.exp(statistics.fmean(map(math.log, ratios))):.2f}, least {min(ratios):.2f}, "
        f"{sum(r < 0.95 for r in ratios)} below 0.95"
        for (name, batch, threads), ratios in sorted(groups.items())
    ]


def print_tables(rows: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    """The report's tables and summary on the terminal."""
    console = Console(width=190)
    for page in reversed(pages(rows, machine)):  # the targets last, where one looks
        table = Table(title=page.title, caption=page.note)
        for place, column in enumerate(page.columns):
            table.add_column(column, justify="left" if place < page.words else "right")
        for row in page.rows:
            table.add_row(*row)
        console.print(table)
    for line in [*_summary(rows), _headline(machine)]:
        console.print(line)


def _plot_ratios(rows: list[dict[str, Any]], path: Path) -> None:
    groups = sorted({(r["pass"], r["batch"], r["threads"]) for r in rows})
    figure, axis = plt.subplots(figsize=(11, 5))
    for group in groups:
        ratios = sorted(r["ratio"] for r in rows if (r["pass"], r["batch"], r["threads"]) == group)
        label = f"{group[0]}, batch {group[1]}, {group[2]} threads"
        axis.plot([i / max(1, len(ratios) - 1) for i in range(len(ratios))], ratios, label=label)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set(yscale="log", xlabel="share of the layers", ylabel="torch channels_last / fastcnn")
    axis.yaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_roofline(rows: list[dict[str, Any]], machine: dict[str, Any], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(11, 5))
    for threads, peak in machine["peaks"].items():
        points = [r for r in rows if r.get("flop") and str(r["threads"]) == threads]
        intensity = [r["flop"] / r["bytes"] for r in points]
        for name, marker in (("fastcnn", "o"), ("torch channels_last", "x")):
            rates = [r["flop"] / r["ms"][name] / 1e6 for r in points]
            axis.scatter(intensity, rates, s=9, marker=marker, label=f"{name}, {threads} threads")
        roof = [10 ** (i / 20) for i in range(-20, 70)]
        axis.plot(roof, [min(peak["gflops"], x * peak["copy_gbs"]) for x in roof], linewidth=0.8, color="black")
    axis.set(xscale="log", yscale="log", xlabel="FLOP a byte", ylabel="GFLOP/s, counting direct convolution's FLOP")
    axis.set_title("Winograd's algorithm lies above the roof: it needs fewer multiplications", fontsize=9)
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(rows: list[dict[str, Any]], machine: dict[str, Any], folder: Path) -> None:
    """Writes the report's files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = [r for r in rows if "op" in r]
    charts = []
    if layers:
        _plot_ratios(layers, folder / "ratios.png")
        _plot_roofline(layers, machine, folder / "roofline.png")
        charts = ["ratios.png", "roofline.png"]
    Report(
        title=f"{machine['cpu']}, {machine['capability']}",
        headline=_headline(machine),
        command=machine["command"],
        pages=pages(rows, machine),
        summary=_summary(rows),
        charts=charts,
    ).write(folder)


def main(measured: Path, out: Path = DOCS) -> None:
    """Writes the report of a pytest-benchmark JSON."""
    mpl.use("Agg")
    data = json.loads(measured.read_text())
    machine = data["machine_info"]["fastcnn"]
    rows = [b["extra_info"] for b in data["benchmarks"] if "pass" in b["extra_info"]]
    dtype = "" if machine["dtype"] == "float32" else machine["dtype"]
    name = folder_name(machine["cpu"], machine["capability"], dtype)
    write(rows, machine, out / name)
    print(f"wrote {out / name}")


if __name__ == "__main__":
    typer.run(main)
