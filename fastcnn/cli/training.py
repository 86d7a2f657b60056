"""`fastcnn train`: one network, its history, curves and checkpoint in a folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastcnn import models
from fastcnn.cli.console import RESULT_COLUMNS, Reporter, add_results, make_console, make_table
from fastcnn.cli.errors import UserError
from fastcnn.cli.running import check_input, describe_device, load_batches, make_trainers, run_in_turns
from fastcnn.cli.settings import Settings, find_network, resolve
from fastcnn.data.errors import require
from fastcnn.train import CheckpointError, Trainer, distributed, load_checkpoint, save_curves

LAYERS = {"fastcnn": ("fastcnn",), "torch": ("torch",), "both": ("fastcnn", "torch")}
CHECKPOINT = "checkpoint.pt"
HISTORY = "history.json"
CURVES = "curves.png"


@dataclass(frozen=True)
class Folder:
    """Where a run keeps its files; with two kinds of layers each one has a folder inside."""

    path: Path
    impl: str

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the kinds of layers that are trained."""
        return LAYERS[self.impl]

    def of(self, layers: str) -> Path:
        """Return the folder of one kind of layers."""
        return self.path / layers if len(self.layers) > 1 else self.path

    def checkpoints(self) -> dict[str, Path]:
        """Return each kind's checkpoint."""
        return {layers: self.of(layers) / CHECKPOINT for layers in self.layers}


def train(network: str, given: Mapping[str, Any], impl: str, out: Path | None, resume: bool, overwrite: bool) -> int:
    """Train as the options say and return the exit code."""
    find_network(network)
    folder = Folder(out if out is not None else Path("runs", network), impl)
    if resume and overwrite:
        raise UserError("--resume goes on with a run, --overwrite begins it anew: give one of them")
    settings = resolve(network, given, _saved_settings(folder) if resume else None)
    if not resume and not overwrite:
        _refuse_finished_work(folder)
    require("matplotlib.figure", "drawing the curves", "'fastcnn[train]'")
    device = _check_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with distributed.process_group(device) as device:
        return _run(settings, folder, device, resume)


def _run(settings: Settings, folder: Folder, device: torch.device, resume: bool) -> int:
    reporter = Reporter(make_console(), quiet=distributed.rank() != 0)
    batches = load_batches(settings)
    check_input(settings, batches[0].num_examples)
    trainers = make_trainers(settings, batches, device, folder.checkpoints())
    for trainer in trainers.values():
        if resume:
            trainer.resume()
        else:
            trainer.save()
    reporter.line(_headline(settings, device, folder))
    try:
        histories = run_in_turns(
            trainers,
            settings.epochs,
            reporter,
            epoch_examples=batches[0].shard_size,
            after_epoch=lambda name: _save_history(trainers[name], folder.of(name), device),
        )
    except KeyboardInterrupt:
        done = min(trainer.epoch for trainer in trainers.values())
        reporter.line(
            f"interrupted after {done} of {settings.epochs} epochs; to go on: "
            f"fastcnn train {settings.network} --impl {folder.impl} --out {shlex.quote(str(folder.path))} --resume"
        )
        raise
    if distributed.rank() == 0:
        table = make_table(None, RESULT_COLUMNS)
        add_results(table, settings.network, settings.resize, histories)
        reporter.console.print(table)
        reporter.line(f"device: {describe_device(device)}")
        _compare_with_textbook(settings, reporter)
        save_curves(folder.path / CURVES, {settings.network: histories})
        reporter.line(f"checkpoint, history and curves: {folder.path}")
    return 0


def _headline(settings: Settings, device: torch.device, folder: Folder) -> str:
    optimizer = settings.optimizer + (f" (momentum {settings.momentum:g})" if settings.momentum else "")
    processes = distributed.world_size()
    return (
        f"{settings.network}, {' and '.join(folder.layers)} layers, {settings.data} at {settings.resize} pixels, "
        f"{optimizer}, lr {settings.lr:g}, batch size {settings.batch_size}, {settings.epochs} epochs, "
        f"seed {settings.seed}, {describe_device(device)}" + (f", {processes} processes" if processes > 1 else "")
    )


def _save_history(trainer: Trainer, folder: Path, device: torch.device) -> None:
    if distributed.rank() == 0:
        about = {
            "settings": dict(trainer.config),
            "torch": torch.__version__,
            "device": describe_device(device),
            "processes": distributed.world_size(),
        }
        trainer.history.save(folder / HISTORY, about)


def _compare_with_textbook(settings: Settings, reporter: Reporter) -> None:
    reported = models.REGISTRY[settings.network].reported
    if reported is None or settings.data != "fashion-mnist" or settings.recipe != "sgd":
        return
    reporter.line(
        f"the textbook reports loss {reported.loss:.3f}, train acc {reported.train_accuracy:.3f}, "
        f"test acc {reported.test_accuracy:.3f}, {reported.examples_per_second:.1f} examples/s on its author's GPU"
    )


def _saved_settings(folder: Folder) -> dict[str, Any]:
    """Read the settings that a run in `folder` was started with."""
    path = next(iter(folder.checkpoints().values()))
    saved: dict[str, Any] = dict(load_checkpoint(path)["config"])
    if "network" not in saved:
        raise CheckpointError(f"{path}: does not say which network it is of: written by another program")
    layers = saved.pop("layers", None)
    if layers != folder.layers[0]:
        raise UserError(f"--resume continues a run with --impl {layers}, not {folder.layers[0]}")
    return saved


def _refuse_finished_work(folder: Folder) -> None:
    for path in folder.checkpoints().values():
        if path.exists():
            raise UserError(
                f"{path} exists: --resume goes on with that run, --overwrite begins it anew, --out DIR keeps both"
            )


def _check_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device: there is no device {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: expected cpu or cuda, but got {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: torch {torch.__version__} sees no CUDA device here")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")
    return device
