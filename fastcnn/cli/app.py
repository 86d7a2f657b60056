"""The commands and their options; what they do is in the modules named after them."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="fastcnn",
    help="Fast CPU kernels for convolutional networks in PyTorch: train the textbook's networks, look at them.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Impl(str, enum.Enum):
    """Whose layers a network is built from."""

    FASTCNN = "fastcnn"
    TORCH = "torch"
    BOTH = "both"


class DataSet(str, enum.Enum):
    """The data sets."""

    DIGITS = "digits"
    FASHION_MNIST = "fashion-mnist"


class Method(str, enum.Enum):
    """Optimizers, and the recipes named after them."""

    SGD = "sgd"
    ADAM = "adam"


Threads = Annotated[int | None, typer.Option(min=1, help="Threads for computing; torch's own choice if not given.")]


@app.command("train")
def train_command(
    network: Annotated[str, typer.Argument(help="A network's name, as `fastcnn models` lists them.")],
    recipe: Annotated[Method | None, typer.Option(help="The textbook's settings to start from. (default: sgd)")] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images in a batch, over all processes.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs, with those before --resume.")] = None,
    resize: Annotated[int | None, typer.Option(min=1, help="Make the images this wide and high, in pixels.")] = None,
    optimizer: Annotated[Method | None, typer.Option(help="Optimizer.")] = None,
    momentum: Annotated[float | None, typer.Option(min=0, max=1, help="SGD's momentum.")] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, help="L2 penalty.")] = None,
    data: Annotated[DataSet | None, typer.Option(help="Data set. (default: digits)")] = None,
    data_root: Annotated[str | None, typer.Option(help="Folder of Fashion-MNIST's four .gz files.")] = None,
    augment: Annotated[
        bool | None,
        typer.Option("--augment/--no-augment", help="Flip, crop, change brightness (needs torchvision)."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. (default: cpu)")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, order and dropout. (default: 0)")] = None,
    threads: Threads = None,
    impl: Annotated[Impl, typer.Option(help="Whose layers; both trains two networks in turns.")] = Impl.FASTCNN,
    out: Annotated[Path | None, typer.Option(help="Folder for the results. (default: runs/NETWORK)")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, over the folder's checkpoint.")] = False,
) -> int:
    """Train a network with the textbook's recipe or your own settings.

    Writes a checkpoint after every epoch, the history as JSON and the curves as PNG.

    Start it by torchrun for several processes; the batch size is that of all of them together.
    """
    from fastcnn.cli.training import train

    given: dict[str, Any] = {
        "recipe": recipe.value if recipe else None,
        "lr": lr,
        "batch_size": batch_size,
        "epochs": epochs,
        "resize": resize,
        "optimizer": optimizer.value if optimizer else None,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "data": data.value if data else None,
        "data_root": data_root,
        "augment": augment,
        "device": device,
        "seed": seed,
        "threads": threads,
    }
    return train(network, given, impl.value, out, resume, overwrite)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for the curves.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of weights and order.")] = 0,
    threads: Threads = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of both networks, to try it out.")] = None,
) -> int:
    """Train LeNet with BatchNorm and ResNet-18 on real digits, with fastcnn's and with torch's layers, and compare."""
    from fastcnn.cli.demo import demo

    return demo(out, seed, threads, epochs)


@app.command("models")
def models_command(
    name: Annotated[str | None, typer.Argument(help="A network; all of them if not given.")] = None,
    shapes: Annotated[bool, typer.Option("--shapes", help="Print every layer's output shape.")] = False,
    resize: Annotated[int | None, typer.Option(min=1, help="Input size in pixels, instead of the network's.")] = None,
) -> int:
    """List the networks with parameters, FLOP and input size, or show one of them."""
    from fastcnn.cli.networks import list_networks, show_network

    if name is None:
        list_networks()
    else:
        show_network(name, shapes, resize)
    return 0


@app.command("explain")
def explain_command(
    network: Annotated[str, typer.Argument(help="A network of `fastcnn models`, torchvision:NAME, or timm:NAME.")],
    size: Annotated[
        int | None, typer.Option(min=1, help="Width and height of the images, in pixels. (default: the network's)")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 1,
    threads: Threads = None,
    train: Annotated[bool, typer.Option("--train", help="In training mode, with the backward pass.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the table as a web page to this file, too.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="About how long to measure.")] = 20.0,
) -> int:
    """Measure each layer of a network with fastcnn's op and with torch's, and say which kernels run and why.

    Weights are random. Nothing is downloaded.
    """
    from fastcnn.cli.explain import explain_network

    return explain_network(network, size, batch, threads, train, html, seconds)


@app.command("info")
def info_command() -> int:
    """Print versions, CPU capability, threads, CUDA and kernels, for bug reports."""
    from fastcnn.cli.info import show_info

    return show_info()
