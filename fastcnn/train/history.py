"""What a training run reports, one record an epoch."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastcnn.train.files import write_atomically


@dataclass(frozen=True)
class EpochRecord:
    """One epoch's figures; `examples` and `seconds` are those of training alone, without the evaluation."""

    epoch: int  # from 1
    loss: float
    train_accuracy: float  # measured while training, as the textbook does
    test_accuracy: float
    examples: int
    seconds: float

    @property
    def examples_per_second(self) -> float:
        """Training examples over training seconds."""
        return self.examples / self.seconds if self.seconds > 0 else math.inf


@dataclass
class History:
    """The records of all finished epochs."""

    epochs: list[EpochRecord] = field(default_factory=list)

    @property
    def examples_per_second(self) -> float:
        """Training examples over training seconds, of all epochs together."""
        seconds = sum(record.seconds for record in self.epochs)
        return sum(record.examples for record in self.epochs) / seconds if seconds > 0 else math.nan

    @property
    def median_examples_per_second(self) -> float:
        """The median over epochs: what to compare, since a disturbed or first epoch does not move it."""
        return statistics.median(record.examples_per_second for record in self.epochs) if self.epochs else math.nan

    def to_list(self) -> list[dict[str, Any]]:
        """Return plain values, for checkpoints and JSON."""
        return [dataclasses.asdict(record) for record in self.epochs]

    @classmethod
    def from_list(cls, records: list[dict[str, Any]]) -> History:
        """Return the history that `to_list` was called on."""
        return cls([EpochRecord(**record) for record in records])

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write JSON: the records under "epochs", the rate over all of them, and `about` the run; NaN becomes null."""
        records = [
            record | {"examples_per_second": of.examples_per_second}
            for record, of in zip(self.to_list(), self.epochs, strict=True)
        ]
        document = {**about, "examples_per_second": self.examples_per_second, "epochs": records}
        text = json.dumps(_without_nan(document), indent=2, allow_nan=False) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return value
