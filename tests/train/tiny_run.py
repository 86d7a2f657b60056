"""A small training run with dropout, momentum and a checkpoint: imported by the tests, and run to be killed.

As a program, `tiny_run.py CHECKPOINT EPOCHS [EPOCH BATCH]`: it goes on from the checkpoint if there is one, and kills
itself, as a power cut would, in that batch.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from fastcnn.data import ImageBatches
from fastcnn.train import History, fit

IMAGES, BATCH_SIZE = 60, 8


def batches():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES) % 10
    images = torch.randint(0, 80, (IMAGES, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images += (labels * 16).to(torch.uint8).view(-1, 1, 1, 1)
    return (
        ImageBatches(images[:50], labels[:50], BATCH_SIZE, shuffle=True, seed=5),
        ImageBatches(images[50:], labels[50:], BATCH_SIZE),
    )


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, 10)
    )


def run(checkpoint: Path | None, epochs: int, resume: bool = False, on_batch=None) -> tuple[History, nn.Module]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    torch.manual_seed(1)
    history = fit(
        model,
        *batches(),
        optimizer=optimizer,
        epochs=epochs,
        checkpoint=checkpoint,
        resume=resume,
        config={"purpose": "test"},
        on_batch=on_batch,
    )
    return history, model


if __name__ == "__main__":
    path, epochs, *moment = Path(sys.argv[1]), *map(int, sys.argv[2:])
    until = (moment[0] - 1) * -(-50 // BATCH_SIZE) + moment[1] if moment else None
    seen = 0

    def kill_in_time(count: int) -> None:
        global seen
        seen += 1
        if seen == until:
            os.kill(os.getpid(), signal.SIGKILL)

    run(path, epochs, resume=path.exists(), on_batch=kill_in_time)
