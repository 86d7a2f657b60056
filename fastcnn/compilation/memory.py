"""Where the values of a plan lie in its arena, so that those alive at the same time are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 16  # floats: one cache line, one AVX-512 register


@dataclass
class Buffer:
    """Memory for a value, or for the values side by side in a concat.

    Attributes:
        size: floats an image.
        first: the first step that writes to it.
        last: the last step that reads it, or writes to it.
    """

    size: int
    first: int
    last: int


def assign_offsets(buffers: Sequence[Buffer]) -> tuple[list[int], int]:
    """Offsets in floats an image, multiples of ALIGNMENT, and the arena's size.

    The largest buffer first, each as low as those that are alive with it allow. A step's output never lies where its
    inputs do. Source: Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020 (greedy by
    size).
    """
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for index in sorted(range(len(buffers)), key=lambda i: (-buffers[i].size, buffers[i].first)):
        buffer = buffers[index]
        offset = 0
        for other in sorted(placed, key=lambda i: offsets[i]):
            neighbour = buffers[other]
            if neighbour.first > buffer.last or buffer.first > neighbour.last:
                continue
            if offset + buffer.size <= offsets[other]:
                break
            offset = max(offset, _aligned(offsets[other] + neighbour.size))
        offsets[index] = offset
        placed.append(index)
    return offsets, max((_aligned(o + b.size) for o, b in zip(offsets, buffers, strict=True)), default=0)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
