"""What the tests of batch_norm and batch_norm_relu share: samples, generated configurations, and the float64 oracle."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from conditions import LAYOUTS, generate, with_layout
from torch import Tensor

# Sizes straddle the vector widths of 2, 4, 8 and 16 lanes, the mask's bytes, and the kernels' tiles.
SAMPLES: dict[str, tuple[int, ...]] = {
    "one_channel": (3, 1, 5, 4),
    "three": (2, 3, 7, 5),
    "seven": (4, 7, 3, 3),
    "eight": (2, 8, 5, 5),
    "fifteen": (2, 15, 4, 3),
    "seventeen": (3, 17, 4, 4),
    "thirty_three": (2, 33, 3, 2),
    "sixty_four": (2, 64, 6, 6),
    "one_hundred_thirty": (2, 130, 3, 3),
    "many_tiles": (2, 20, 41, 40),
    "many_tiles_of_channels": (100, 523),
    "rows": (9, 21),
    "two_rows": (2, 5),
    "sequence": (3, 6, 11),
    "volume": (2, 5, 3, 4, 2),
    "six_dimensions": (2, 3, 2, 2, 2, 2),
    "one_image": (1, 9, 4, 4),
}


def layouts(shape: tuple[int, ...]) -> tuple[str, ...]:
    """The layouts that a tensor of this shape can have."""
    return LAYOUTS if len(shape) == 4 else ("contiguous", "strided")


CASES = [(name, layout) for name, shape in SAMPLES.items() for layout in layouts(shape)]


def tolerance(dtype: torch.dtype) -> float:
    """A block sums at most 128 rows in the element type, rounding errors grow with the root; 8 for the worst."""
    return 8 * math.sqrt(128) * torch.finfo(dtype).eps if dtype in (torch.float32, torch.float64) else 8e-3


class Case:
    """The tensors of one call, drawn in float64 and rounded to `dtype`."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        layout: str = "contiguous",
        grad: bool = False,
        seed: int = 1,
        params: torch.dtype | None = None,
    ) -> None:
        """Draws input, residual and grad_output of `shape`; weight, bias and statistics of its channels."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        c, params = shape[1], params or dtype
        self.input = with_layout((1.5 * draw(*shape) + 0.3).to(dtype).requires_grad_(grad), layout)
        self.residual = with_layout(draw(*shape).to(dtype).requires_grad_(grad), layout)
        self.weight = (draw(c) + 0.2).to(params).requires_grad_(grad)
        self.bias = draw(c).to(params).requires_grad_(grad)
        self.running_mean = draw(c).to(params)
        self.running_var = (draw(c).abs() + 0.3).to(params)
        self.grad_output = draw(*shape).to(dtype)

    def double(self) -> Case:
        """The same values in float64, as leaves."""
        other = object.__new__(Case)
        for name, t in vars(self).items():
            setattr(other, name, t.detach().double().contiguous().requires_grad_(t.requires_grad))
        return other

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Copies of the running statistics."""
        return self.running_mean.detach().clone(), self.running_var.detach().clone()


def reference(
    case: Case, statistics: tuple[Any, Any], training: bool, residual: bool = False, eps: float = 1e-5
) -> Tensor:
    """torch's batch norm, plus the residual: what comes before the ReLU."""
    output = F.batch_norm(case.input, *statistics, case.weight, case.bias, training, 0.1, eps)
    return output + case.residual if residual else output


def make_config(rng: random.Random) -> dict[str, Any]:
    """A tiny batch norm, drawn so that every named condition is frequent."""
    shape = rng.choice(
        [(5, 3), (3, 9), (2, 3, 3), (3, 2, 4), (2, 3, 2, 2), (3, 2, 2, 1), (2, 9, 1, 2), (2, 2, 2, 1, 2)]
    )
    training = rng.random() < 0.6
    return dict(
        shape=shape,
        layout=rng.choice(layouts(shape) * (3 if len(shape) == 4 else 1) + ("contiguous",)),
        training=training,
        statistics=not training or rng.random() < 0.6,
        weight=rng.random() < 0.75,
        bias=rng.random() < 0.75,
        residual=rng.random() < 0.5,
        eps=rng.choice([1e-5, 1e-3, 0.1]),
        seed=rng.randrange(10**6),
    )


CONFIGS = generate(make_config, 320)
CONDITIONS = {
    "training": lambda c: c["training"],
    "evaluation": lambda c: not c["training"],
    "residual": lambda c: c["residual"],
    "no affine": lambda c: not c["weight"] and not c["bias"],
    "weight without bias": lambda c: c["weight"] and not c["bias"],
    "no running statistics": lambda c: not c["statistics"],
    "running statistics in training": lambda c: c["training"] and c["statistics"],
    "rank 2": lambda c: len(c["shape"]) == 2,
    "rank 3": lambda c: len(c["shape"]) == 3,
    "rank 4": lambda c: len(c["shape"]) == 4,
    "rank 5": lambda c: len(c["shape"]) == 5,
    "contiguous": lambda c: c["layout"] == "contiguous",
    "channels_last": lambda c: c["layout"] == "channels_last",
    "strided view": lambda c: c["layout"] == "strided",
}
