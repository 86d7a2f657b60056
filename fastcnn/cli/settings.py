"""A training run's settings: from the command line first, then the resumed checkpoint, then the network's recipe."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastcnn import models
from fastcnn.cli.errors import UserError

# What a resumed run may change. Everything else would make it another run.
MAY_CHANGE = ("epochs", "device", "threads", "data_root")


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on."""

    network: str
    recipe: str
    data: str
    data_root: str | None
    resize: int
    augment: bool
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    batch_size: int
    epochs: int
    seed: int
    device: str
    threads: int | None

    def to_config(self) -> dict[str, Any]:
        """Return plain values, for checkpoints and JSON."""
        return dataclasses.asdict(self)


def resolve(network: str, given: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> Settings:
    """Complete the options that were `given` (None: not given) from `saved` settings or from the recipe.

    Raises:
        UserError: the network or recipe is unknown, a value is out of its range, or differs from the saved run's.
    """
    info = find_network(network)
    chosen = {name: value for name, value in given.items() if value is not None}
    if saved is not None:
        _check_same(network, chosen, saved)
        chosen = {**saved, **chosen}
    recipe_name = chosen.get("recipe", "sgd")
    if recipe_name not in info.recipes:
        raise UserError(f"{network} has no recipe {recipe_name!r}, only {', '.join(info.recipes)}")
    recipe = info.recipes[recipe_name]
    defaults: dict[str, Any] = {
        "recipe": recipe_name,
        "data": "digits",
        "data_root": None,
        "resize": recipe.resize,
        "augment": False,
        "optimizer": recipe.optimizer,
        "lr": recipe.lr,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "batch_size": recipe.batch_size,
        "epochs": recipe.epochs,
        "seed": 0,
        "device": "cpu",
        "threads": None,
    }
    settings = Settings(network=network, **{name: chosen.get(name, value) for name, value in defaults.items()})
    if settings.optimizer == "adam" and settings.momentum != 0:
        raise UserError("--momentum goes with --optimizer sgd; Adam has its own two")
    return settings


def find_network(name: str) -> models.NetworkInfo:
    """Return the network of that name, or raise UserError with the closest one."""
    if name in models.REGISTRY:
        return models.REGISTRY[name]
    close = difflib.get_close_matches(name, models.REGISTRY, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(models.REGISTRY)}"
    raise UserError(f"there is no network {name!r}: {hint}")


def _check_same(network: str, chosen: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    for name, value in {"network": network, **chosen}.items():
        if name not in MAY_CHANGE and value != saved.get(name):
            option = "the network" if name == "network" else f"--{name.replace('_', '-')}"
            raise UserError(f"--resume continues a run with {option} {saved.get(name)}, not {value}")
