"""Run by torchrun: rank 0 writes what two processes computed; `results` is also called in one process.

In float64, so that the comparison is to rounding and hides nothing.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from fastcnn import models
from fastcnn.data import ImageBatches
from fastcnn.train import Trainer, distributed

IMAGES, BATCH_SIZE, PIXELS = 22, 8, 28  # the last batch has 6


class Double(nn.Module):
    def forward(self, images):
        return images.double()


def batches():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 1, PIXELS, PIXELS), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (IMAGES,), generator=generator)
    return ImageBatches(images, labels, BATCH_SIZE, shuffle=True), ImageBatches(images[:9], labels[:9], BATCH_SIZE)


def results(network: str, layers: str, checkpoint: Path | None = None) -> dict:
    """One epoch: the gradients of its last batch, the state after it, the figures, and each process's state."""
    torch.manual_seed(distributed.rank())  # DistributedDataParallel starts all from rank 0's weights
    model = nn.Sequential(Double(), models.initialize(models.build(network, layers=layers)).double())
    trainer = Trainer(model, *batches(), torch.optim.SGD(model.parameters(), 0.1), checkpoint=checkpoint)
    record = trainer.run_epoch()
    flat = torch.cat([value.double().flatten() for value in model.state_dict().values()])
    return {
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "state": model.state_dict(),
        "loss": record.loss,
        "train_accuracy": record.train_accuracy,
        "test_accuracy": record.test_accuracy,
        "examples": record.examples,
        "states": distributed.gather(flat, torch.device("cpu")),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu")):
        collected = {}
        for case in sys.argv[2:]:
            network, layers = case.split(":")
            collected[case] = results(network, layers, folder / f"{network}-{layers}.pt")
        if distributed.rank() == 0:
            torch.save(collected, folder / "results.pt")
