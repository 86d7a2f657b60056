"""What the op tests share: generated configurations with named conditions, layouts, and comparisons with torch."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "strided")


def with_layout(t: Tensor, layout: str) -> Tensor:
    """The same values as a leaf in another layout; a strided one is a view of a larger tensor."""
    if layout == "channels_last":
        return t.detach().to(memory_format=torch.channels_last).requires_grad_(t.requires_grad)
    if layout == "strided":
        wide = torch.zeros(*t.shape[:-1], 2 * t.shape[-1] + 1, dtype=t.dtype)
        wide[..., 1::2] = t.detach()
        return wide[..., 1::2].requires_grad_(t.requires_grad)
    return t


def generate(make: Callable[[random.Random], dict[str, Any]], count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` configurations from a fixed seed."""
    rng = random.Random(seed)
    return [make(rng) for _ in range(count)]


def assert_conditions(
    configs: Iterable[dict[str, Any]], conditions: dict[str, Callable[[dict[str, Any]], bool]]
) -> None:
    """Every named condition occurs at least ten times among the configurations."""
    configs = list(configs)
    counts = Counter({name: sum(map(holds, configs)) for name, holds in conditions.items()})
    rare = {name: n for name, n in counts.items() if n < 10}
    assert not rare, f"too rare among {len(configs)} configurations: {rare}"


def assert_raises_like(ours: Callable[[], Any], theirs: Callable[[], Any], *key_words: str) -> None:
    """Both calls raise the same exception type, and both messages hold the key words."""
    with pytest.raises(Exception) as expected:
        theirs()
    with pytest.raises(expected.type) as got:
        ours()
    for word in key_words:
        assert word.lower() in str(expected.value).lower(), f"torch does not say {word!r}: {expected.value}"
        assert word.lower() in str(got.value).lower(), f"missing {word!r}: {got.value}"


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected magnitude; 0 for empty tensors."""
    assert got.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    scale = expected.abs().max().clamp_min(1e-30)
    return float((got.detach().to(expected.dtype) - expected).abs().max() / scale)


def tolerance(terms: int, dtype: torch.dtype) -> float:
    """Rounding errors of a sum grow with the root of its length; 8 covers the constant and the largest of many.

    The half types are summed in float32 and rounded once.
    """
    summed = torch.float32 if dtype in HALF else dtype
    rounded = torch.finfo(dtype).eps / 2 if dtype in HALF else 0.0
    return 8 * math.sqrt(max(terms, 1)) * torch.finfo(summed).eps + rounded
