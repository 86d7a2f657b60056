"""One epoch of training and one evaluation: the loops themselves, without files and without printing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastcnn.train.distributed import sum_over_processes

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
OnBatch = Callable[[int], object]


@dataclass(frozen=True)
class EpochResult:
    """Mean loss and accuracy over an epoch's examples, of all processes, and how long it took."""

    loss: float
    accuracy: float
    examples: int
    seconds: float


def train_epoch(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    optimizer: Optimizer,
    *,
    device: torch.device | str | None = None,
    on_batch: OnBatch | None = None,
) -> EpochResult:
    """Train `model` on all batches once, in training mode.

    Args:
        model: maps Tensor[B, C, H, W] to scores Tensor[B, classes].
        batches: an iterable of `(images, labels)`, such as ImageBatches or a DataLoader.
        loss: maps scores and labels to the mean loss of the batch.
        optimizer: steps after each batch.
        device: where to put the batches; None for the device of the model's first parameter.
        on_batch: called after each batch with its number of examples.

    Returns:
        Loss and accuracy as measured while training, that is, each batch before its own step.
    """
    place = _device_of(model, device)
    model.train()
    totals = torch.zeros(3, dtype=torch.float64, device=place)  # loss, correct, examples
    start = time.perf_counter()
    for images, labels in batches:
        images, labels = _move(images, place), labels.to(place)
        optimizer.zero_grad(set_to_none=True)
        scores = model(images)
        batch_loss = loss(scores, labels)
        torch.autograd.backward(batch_loss)
        optimizer.step()
        with torch.no_grad():
            correct = (scores.argmax(dim=1) == labels).sum()
            totals[0] += batch_loss * len(labels)
            totals[1] += correct
            totals[2] += len(labels)
        if on_batch is not None:
            on_batch(len(labels))
    sum_over_processes(totals)
    total_loss, correct_count, examples = totals.tolist()  # waits for the device
    seconds = time.perf_counter() - start
    count = max(examples, 1)
    return EpochResult(total_loss / count, correct_count / count, int(examples), seconds)


@torch.no_grad()
def evaluate_accuracy(model: nn.Module, batches: Batches, *, device: torch.device | str | None = None) -> float:
    """Return the share of examples that `model` classifies correctly, in evaluation mode; its mode is kept."""
    place = _device_of(model, device)
    was_training = model.training
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=place)  # correct, examples
    try:
        for images, labels in batches:
            labels = labels.to(place)
            correct = (model(_move(images, place)).argmax(dim=1) == labels).sum()
            totals[0] += correct
            totals[1] += len(labels)
    finally:
        model.train(was_training)
    correct_count, examples = sum_over_processes(totals).tolist()
    return float(correct_count / max(examples, 1))


def _device_of(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    first = next(model.parameters(), None)
    return first.device if first is not None else torch.device("cpu")


def _move(images: Tensor, device: torch.device) -> Tensor:
    if images.dim() == 4:
        return images.to(device, memory_format=torch.channels_last)
    return images.to(device)
