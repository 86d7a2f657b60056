"""Runs that take turns: one network with one kind of layers, or with several from the same start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from fastcnn import data, models
from fastcnn._machine import cpu_name
from fastcnn.cli.console import Reporter
from fastcnn.cli.errors import UserError
from fastcnn.cli.settings import Settings
from fastcnn.train import History, Trainer, distributed

SEED_STRIDE = 1_000_003  # spreads the seeds of training apart from those of initial weights


def load_batches(settings: Settings) -> tuple[data.ImageBatches, data.ImageBatches]:
    """Load the data set as `(train, test)` batches."""
    try:
        if settings.data == "digits":
            return data.load_data_digits(
                settings.batch_size, settings.resize, seed=settings.seed, augment=settings.augment
            )
        return data.load_data_fashion_mnist(
            settings.batch_size,
            settings.resize,
            settings.data_root,
            seed=settings.seed,
            augment=settings.augment,
        )
    except ValueError as error:  # a batch size that the processes cannot share
        raise UserError(str(error)) from error


def build_model(settings: Settings, layers: str) -> nn.Module:
    """Build the recipe's network, on the CPU, with initial weights that depend on the seed alone."""
    torch.manual_seed(settings.seed)
    arguments = models.REGISTRY[settings.network].recipes[settings.recipe].network
    return models.initialize(models.build(settings.network, **arguments, layers=layers))


def check_input(settings: Settings, num_examples: int) -> None:
    """Find out before any training whether the network takes the images, by a run that computes nothing.

    Raises:
        UserError: the images are too small, or BatchNorm would meet a batch of one image.
    """
    with torch.device("meta"):
        model = build_model(settings, "torch")
    shape = (1, 1, settings.resize, settings.resize)
    try:
        models.flop_count(model, shape)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        message = f"{settings.network} does not take images of {settings.resize} pixels: {reason}"
        raise UserError(message) from error
    last = num_examples % settings.batch_size or settings.batch_size
    normalizes = any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in model.modules())
    if normalizes and last <= distributed.world_size():
        raise UserError(f"--batch-size {settings.batch_size} leaves one image in the last batch, too few for BatchNorm")


def make_optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """Return the settings' optimizer over the model's parameters."""
    if settings.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        model.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def make_trainers(
    settings: Settings,
    batches: tuple[data.ImageBatches, data.ImageBatches],
    device: torch.device,
    checkpoints: Mapping[str, Path | None],
) -> dict[str, Trainer]:
    """Return a Trainer for each kind of layers in `checkpoints`: same weights, batches and random numbers."""
    initial: dict[str, torch.Tensor] | None = None
    trainers = {}
    for layers, checkpoint in checkpoints.items():
        model = build_model(settings, layers)
        if initial is None:
            initial = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(initial)
        # torch's annotations do not know this overload of Module.to.
        model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.manual_seed(settings.seed * SEED_STRIDE + 1 + distributed.rank())
        trainers[layers] = Trainer(
            model,
            *batches,
            make_optimizer(settings, model),
            device=device,
            checkpoint=checkpoint,
            config={**settings.to_config(), "layers": layers},
        )
    return trainers


def run_in_turns(
    trainers: dict[str, Trainer],
    epochs: int,
    reporter: Reporter,
    *,
    epoch_examples: int,
    after_epoch: Callable[[str], object] | None = None,
) -> dict[str, History]:
    """Train each until `epochs` epochs are finished, in turns, so that all meet the same state of the machine.

    The order is turned round from epoch to epoch: neither always follows the other.

    Args:
        trainers: the runs by name.
        epochs: finished epochs at the end.
        reporter: told of each batch and epoch.
        epoch_examples: examples that this process trains on in an epoch, for the progress bar.
        after_epoch: called with the run's name after each of its epochs.
    """
    width = max(len(name) for name in trainers)
    remaining = sum(max(0, epochs - trainer.epoch) for trainer in trainers.values())
    with reporter.progress(remaining * epoch_examples) as bar:
        while (epoch := min(trainer.epoch for trainer in trainers.values())) < epochs:
            for name in trainers if epoch % 2 == 0 else reversed(trainers):
                trainer = trainers[name]
                if trainer.epoch > epoch:  # a resumed run may be one epoch ahead
                    continue
                bar.describe(f"{name:<{width}}  epoch {epoch + 1}/{epochs}")
                record = trainer.run_epoch(bar.advance)
                reporter.epoch(f"{name:<{width}}", record, epochs)
                if after_epoch is not None:
                    after_epoch(name)
    return {name: trainer.history for name, trainer in trainers.items()}


def describe_device(device: torch.device) -> str:
    """Return the device's name, and on a CPU the threads and the instructions that torch uses."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device} ({cpu_name()}, {capability}, {threads} thread{'s' if threads != 1 else ''})"
