"""A training run: epochs, history, checkpoints. The loops are in loop.py, the file format in checkpoint.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastcnn.train import distributed
from fastcnn.train.checkpoint import CheckpointError, load_checkpoint, restore, save_checkpoint
from fastcnn.train.history import EpochRecord, History
from fastcnn.train.loop import Batches, Loss, OnBatch, evaluate_accuracy, train_epoch


@dataclass
class Trainer:
    """One network's run, an epoch at a time, so that two runs can take turns.

    Each run has random numbers of its own (dropout, augmentation): it starts from torch's state at its creation
    and puts its own state in force while its epoch lasts. So runs that take turns do not disturb each other, and
    two that are created in the same state draw the same numbers.

    Under torch.distributed the model is trained in DistributedDataParallel, figures are over all processes, and
    rank 0 writes.
    """

    model: nn.Module  # on its device
    train_data: Batches
    test_data: Batches
    optimizer: Optimizer
    loss: Loss = field(default_factory=nn.CrossEntropyLoss)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoint: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)  # kept in the checkpoint: numbers, strings, booleans
    history: History = field(default_factory=History)

    def __post_init__(self) -> None:
        """Join the other processes' model, and keep the state of torch's random numbers."""
        self._wrapped = distributed.wrap(self.model, self.device)
        self._rng = _random_state(self.device)

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history.epochs)

    def run_epoch(self, on_batch: OnBatch | None = None) -> EpochRecord:
        """Train one epoch, evaluate, add to the history, and write the checkpoint if there is a path for it."""
        set_epoch = getattr(self.train_data, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.epoch)
        _set_random_state(self._rng, self.device)
        result = train_epoch(
            self._wrapped, self.train_data, self.loss, self.optimizer, device=self.device, on_batch=on_batch
        )
        self._rng = _random_state(self.device)
        distributed.share_buffers(self.model)
        accuracy = evaluate_accuracy(self.model, self.test_data, device=self.device)
        record = EpochRecord(self.epoch + 1, result.loss, result.accuracy, accuracy, result.examples, result.seconds)
        self.history.epochs.append(record)
        self.save()
        return record

    def save(self) -> None:
        """Write the checkpoint, if there is a path for it."""
        if self.checkpoint is None:
            return
        rng = {kind: distributed.gather(state, self.device) for kind, state in self._rng.items()}
        if distributed.rank() != 0:
            return
        checkpoint = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "history": self.history.to_list(),
            "rng": rng,
            "config": dict(self.config),
        }
        try:
            save_checkpoint(self.checkpoint, checkpoint)
        except KeyboardInterrupt:
            save_checkpoint(self.checkpoint, checkpoint)  # the epoch is finished: Ctrl-C must not lose it
            raise

    def resume(self) -> None:
        """Go on from the checkpoint: the next epoch is the one after its last finished one.

        Raises:
            CheckpointError: it is missing, damaged, or of another network, optimizer or number of processes.
        """
        if self.checkpoint is None:
            raise ValueError("resume needs the path of a checkpoint")
        saved = load_checkpoint(self.checkpoint)
        states = {kind: saved["rng"].get(kind, []) for kind in self._rng}
        for kind, state in states.items():
            if not all(isinstance(part, Tensor) and part.dtype == torch.uint8 for part in state):
                raise CheckpointError(f"{self.checkpoint}: damaged: its random states are no byte tensors")
            if len(state) != distributed.world_size():
                raise CheckpointError(
                    f"{self.checkpoint}: has random states ({kind}) of {len(state)} processes, "
                    f"but there are {distributed.world_size()}: start as many as before, on the same device"
                )
        try:
            history = History.from_list(saved["history"])
        except TypeError as error:
            raise CheckpointError(f"{self.checkpoint}: damaged history: {error}") from error
        if len(history.epochs) != saved["epoch"]:
            raise CheckpointError(
                f"{self.checkpoint}: damaged: {len(history.epochs)} records of {saved['epoch']} epochs"
            )
        restore(self.checkpoint, saved, self.model, self.optimizer)
        self.history = history
        self._rng = {kind: state[distributed.rank()] for kind, state in states.items()}


def fit(
    model: nn.Module,
    train_data: Batches,
    test_data: Batches,
    *,
    optimizer: Optimizer,
    epochs: int,
    loss: Loss | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    config: Mapping[str, Any] | None = None,
    on_batch: OnBatch | None = None,
    on_epoch: Callable[[EpochRecord], object] | None = None,
) -> History:
    """Train `model` until `epochs` epochs are finished, those before a resumed checkpoint included.

    Args:
        model: the network, on the device where it is to be trained.
        train_data: an iterable of `(images, labels)`; its `set_epoch`, if it has one, is called before each epoch.
        test_data: the same, for the accuracy after each epoch.
        optimizer: over the model's parameters.
        epochs: finished epochs at the end.
        loss: maps scores and labels to the batch's mean loss; None for cross entropy.
        device: where to put the batches; None for the device of the model's first parameter.
        checkpoint: written before the first and after each epoch; None for none.
        resume: start from `checkpoint` instead of from the model as it is.
        config: kept in the checkpoint for the caller: numbers, strings, booleans, None.
        on_batch: called after each batch with its number of examples.
        on_epoch: called after each epoch with its record.

    Returns:
        The history of all epochs.

    Raises:
        CheckpointError: `resume` from a missing, damaged or foreign checkpoint.
    """
    if device is None:
        first = next(model.parameters(), None)
        device = first.device if first is not None else "cpu"
    trainer = Trainer(
        model,
        train_data,
        test_data,
        optimizer,
        loss=loss if loss is not None else nn.CrossEntropyLoss(),
        device=torch.device(device),
        checkpoint=Path(checkpoint) if checkpoint is not None else None,
        config=config or {},
    )
    if resume:
        trainer.resume()
    else:
        trainer.save()
    while trainer.epoch < epochs:
        record = trainer.run_epoch(on_batch)
        if on_epoch is not None:
            on_epoch(record)
    return trainer.history


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
