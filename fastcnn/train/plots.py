"""Curves of training runs as a PNG, by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastcnn.data.errors import require
from fastcnn.train.files import write_atomically
from fastcnn.train.history import History

CURVES = {"loss": "training loss", "train_accuracy": "training accuracy", "test_accuracy": "test accuracy"}


def save_curves(path: Path, runs: Mapping[str, Mapping[str, History]]) -> None:
    """Draw loss and accuracies over the epochs: a row of axes for each network, a line for each of its runs.

    Args:
        path: the PNG file.
        runs: for each network, its runs' histories by name.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "drawing curves", "'fastcnn[train]'")
    # A Figure of its own, not pyplot: no display, no window and no global state; it saves through Agg.
    figure = figure_module.Figure(figsize=(12, 3.5 * len(runs)), layout="constrained")
    rows = figure.subplots(len(runs), len(CURVES), squeeze=False)
    for row, (network, histories) in zip(rows, runs.items(), strict=True):
        for axes, (field, title) in zip(row, CURVES.items(), strict=True):
            # Runs that agree cover each other: the later ones are dashed.
            for (name, history), style in zip(histories.items(), ("-", "--", ":", "-.") * len(histories), strict=False):
                epochs = [record.epoch for record in history.epochs]
                axes.plot(
                    epochs,
                    [getattr(record, field) for record in history.epochs],
                    style,
                    marker=".",
                    label=name,
                )
            axes.set(title=f"{network}: {title}", xlabel="epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            axes.legend()
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))
