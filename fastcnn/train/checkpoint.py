"""Checkpoints: one file with everything that the next epoch depends on. Loading one runs no code from it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastcnn.train.files import write_atomically

FORMAT = "fastcnn checkpoint"
VERSION = 1
ENTRIES = {
    "model": dict,  # state_dict, without DistributedDataParallel's prefix
    "optimizer": dict,  # state_dict
    "epoch": int,  # finished epochs
    "history": list,  # of dicts: EpochRecord's fields
    "rng": dict,  # {"cpu": [a state for each process], "cuda": [the same, or nothing]}
    "config": dict,  # the run's settings: numbers, strings, booleans, None
}


class CheckpointError(RuntimeError):
    """A checkpoint is missing, truncated, foreign, or belongs to another run; the message begins with its path."""


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a dict of ENTRIES; a crash at any moment leaves the old file or the new one."""
    missing = ENTRIES.keys() - checkpoint.keys()
    if missing:
        raise ValueError(f"{path}: a checkpoint needs {', '.join(sorted(missing))}")
    document = {"format": FORMAT, "version": VERSION, **checkpoint}
    write_atomically(path, lambda file: torch.save(document, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint with weights_only=True: tensors and plain values, nothing that could run.

    Raises:
        CheckpointError: there is no such file, it is truncated, or it is not a checkpoint of fastcnn.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on foreign pickles, which the error below refuses
            document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here, by the place where the file is damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: truncated, or not a checkpoint of fastcnn: {reason}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of fastcnn")
    if document.get("version") != VERSION:
        version = document.get("version")
        raise CheckpointError(f"{path}: checkpoint version {version}, but this fastcnn reads version {VERSION}")
    for name, kind in ENTRIES.items():
        if not isinstance(document.get(name), kind):
            raise CheckpointError(f"{path}: damaged: its entry {name!r} is not a {kind.__name__}")
    return document


def restore(path: Path, checkpoint: dict[str, Any], model: nn.Module, optimizer: Optimizer) -> None:
    """Load a checkpoint's state into `model` and `optimizer`; where it does not fit, the model is left as it was.

    Raises:
        CheckpointError: the state belongs to another network or optimizer.
    """
    state, own = checkpoint["model"], model.state_dict()
    for name in [*own, *state]:
        if name not in state or name not in own:
            raise CheckpointError(f"{path}: of another network: only one of the two has {name}")
        if not isinstance(state[name], Tensor) or state[name].shape != own[name].shape:
            shape = list(getattr(state[name], "shape", []))
            raise CheckpointError(f"{path}: of another network: {name} is {shape} instead of {list(own[name].shape)}")
    try:
        optimizer.load_state_dict(checkpoint["optimizer"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: of another optimizer: {error}") from error
    model.load_state_dict(state)
