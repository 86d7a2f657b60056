"""`fastcnn models`: the networks, and what every layer of one gives."""

from __future__ import annotations

import torch

from fastcnn import models
from fastcnn.cli.console import make_console, make_table, print_plain
from fastcnn.cli.errors import UserError
from fastcnn.cli.settings import find_network


def list_networks() -> None:
    """Print all networks with parameters, FLOP and input size."""
    columns = {"network": "left", "pixels": "right", "parameters": "right", "MFLOP": "right", "paper": "left"}
    table = make_table(None, columns)
    for name, info in models.REGISTRY.items():
        with torch.device("meta"):
            model = models.build(name, layers="torch")
        flop = models.flop_count(model, (1, 1, info.input_size, info.input_size))
        parameters = models.parameter_count(model)
        table.add_row(name, str(info.input_size), f"{parameters:,}", f"{flop / 1e6:,.1f}", info.citation)
    console = make_console()
    console.print(table)
    print_plain(console, "One input channel, 10 classes; FLOP of one image's forward pass, a multiply-add being two.")


def show_network(name: str, shapes: bool, resize: int | None) -> None:
    """Print one network's figures and recipes, and with `shapes` the output shape of each layer."""
    info = find_network(name)
    size = resize or info.input_size
    with torch.device("meta"):
        model = models.build(name, layers="torch")
    try:
        rows = models.layer_shapes(model, (1, 1, size, size))
        flop = models.flop_count(model, (1, 1, size, size))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{name} does not take images of {size} pixels: {str(error).splitlines()[0]}") from error
    console = make_console()
    print_plain(console, f"{name}: {info.citation}")
    print_plain(
        console,
        f"input 1 x {size} x {size}, {models.parameter_count(model):,} parameters, {flop / 1e6:,.1f} MFLOP an image",
    )
    for kind, recipe in info.recipes.items():
        extra = "".join(f", {key} {value}" for key, value in recipe.network.items())
        print_plain(
            console,
            f"recipe {kind}: {recipe.optimizer}, lr {recipe.lr:g}, momentum {recipe.momentum:g}, weight decay "
            f"{recipe.weight_decay:g}, batch size {recipe.batch_size}, {recipe.epochs} epochs, "
            f"{recipe.resize} pixels{extra}",
        )
    if shapes:
        table = make_table(None, {"layer": "left", "type": "left", "output": "left"})
        for row in rows:
            table.add_row(row.name, row.type, " x ".join(str(length) for length in row.shape))
        console.print(table)
