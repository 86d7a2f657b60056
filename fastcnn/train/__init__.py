"""Training: one epoch, a whole run with history and checkpoints, and several processes under torchrun."""

from fastcnn.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from fastcnn.train.history import EpochRecord, History
from fastcnn.train.loop import EpochResult, evaluate_accuracy, train_epoch
from fastcnn.train.plots import save_curves
from fastcnn.train.trainer import Trainer, fit

__all__ = [
    "CheckpointError",
    "EpochRecord",
    "EpochResult",
    "History",
    "Trainer",
    "evaluate_accuracy",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
    "save_curves",
    "train_epoch",
]
