"""`fastcnn demo`: two networks on real images, each with fastcnn's and with torch's layers, in one table."""

from __future__ import annotations

from pathlib import Path

import torch

from fastcnn.cli.console import RESULT_COLUMNS, Reporter, add_results, make_console, make_table, print_plain
from fastcnn.cli.running import check_input, describe_device, load_batches, make_trainers, run_in_turns
from fastcnn.cli.settings import Settings, resolve
from fastcnn.data.errors import require
from fastcnn.train import History, save_curves

LAYERS = ("fastcnn", "torch")
MIN_ACCURACY = 0.95
EXIT_INACCURATE = 1

# Recipes for 4,000 digits instead of the textbook's 60,000 images: smaller batches, so that an epoch has enough
# steps, and for the sigmoids of LeNet momentum. The last epochs stay above 0.95 for every seed that was tried.
NETWORKS = {
    "lenet_bn": {"resize": 28, "lr": 0.02, "momentum": 0.9, "batch_size": 64, "epochs": 20},
    "resnet18": {"resize": 28, "lr": 0.02, "momentum": 0.0, "batch_size": 64, "epochs": 4},
}


def demo(out: Path, seed: int, threads: int | None, epochs: int | None = None) -> int:
    """Train, print the table, write the curves; exit code 1 where a test accuracy is below 0.95."""
    require("matplotlib.figure", "drawing the curves", "'fastcnn[train]'")
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cpu")
    console = make_console()
    reporter = Reporter(console)
    results: dict[str, dict[str, History]] = {}
    chosen = {
        name: resolve(name, {**recipe, "seed": seed, **({} if epochs is None else {"epochs": epochs})})
        for name, recipe in NETWORKS.items()
    }
    for name, settings in chosen.items():
        reporter.line(f"{name}: {settings.epochs} epochs at {settings.resize} pixels on {describe_device(device)}")
        results[name] = _run(settings, device, reporter)
    table = make_table("MNIST digits: 4,000 to train, 1,000 to test", RESULT_COLUMNS)
    for name, histories in results.items():
        add_results(table, name, chosen[name].resize, histories)
    console.print(table)
    for line in _caption(chosen, device):
        print_plain(console, line)
    curves = out / "curves.png"
    save_curves(curves, results)
    print_plain(console, f"curves: {curves}")
    return _judge(results, reporter)


def _run(settings: Settings, device: torch.device, reporter: Reporter) -> dict[str, History]:
    batches = load_batches(settings)
    check_input(settings, batches[0].num_examples)
    trainers = make_trainers(settings, batches, device, dict.fromkeys(LAYERS))
    return run_in_turns(trainers, settings.epochs, reporter, epoch_examples=batches[0].shard_size)


def _caption(chosen: dict[str, Settings], device: torch.device) -> list[str]:
    recipes = [
        f"{name}: SGD, lr {settings.lr:g}, momentum {settings.momentum:g}, batch size {settings.batch_size}, "
        f"{settings.epochs} epochs, seed {settings.seed}"
        for name, settings in chosen.items()
    ]
    return [
        *recipes,
        "Both kinds of layers start from the same weights, meet the same batches, and take turns epoch by epoch.",
        "examples/s is of training alone, median over the epochs; ratio: to torch.nn's layers, median over the epochs.",
        f"Both in float32 and channels_last on {describe_device(device)}, torch {torch.__version__}.",
    ]


def _judge(results: dict[str, dict[str, History]], reporter: Reporter) -> int:
    code = 0
    for name, histories in results.items():
        for layers, history in histories.items():
            accuracy = history.epochs[-1].test_accuracy
            if not accuracy >= MIN_ACCURACY:  # NaN fails, too
                reporter.line(f"{name} with {layers} layers: test accuracy {accuracy:.3f} is below {MIN_ACCURACY}")
                code = EXIT_INACCURATE
    return code
