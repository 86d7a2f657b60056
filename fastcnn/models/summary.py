"""Looking at a network: output shapes, parameters, FLOP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class LayerShape(NamedTuple):
    """One module's call: its name in the network, its type, and the shape of its output."""

    name: str
    type: str
    shape: tuple[int, ...]


def layer_shapes(model: nn.Module, input_shape: Sequence[int]) -> list[LayerShape]:
    """Runs `model` once, in evaluation mode and without gradients, and lists the output shape of every module.

    Args:
        model: a network whose input is one tensor; it is left as it was.
        input_shape: shape of that tensor, with the batch: (1, 1, 28, 28).

    Returns:
        One LayerShape for each call of a module inside `model`, a block before its parts. nn.Identity, which only
        keeps a fused activation's place, is left out.
    """
    rows: list[LayerShape] = []
    pending: list[int] = []

    def enter(name: str, module: nn.Module) -> None:
        pending.append(len(rows))
        rows.append(LayerShape(name, type(module).__name__, ()))

    def leave(output: Any) -> None:
        index = pending.pop()
        if isinstance(output, Tensor):
            rows[index] = rows[index]._replace(shape=tuple(output.shape))

    handles = []
    try:
        for name, module in model.named_modules():
            if module is model or isinstance(module, nn.Identity):
                continue
            handles.append(module.register_forward_pre_hook(lambda m, args, name=name: enter(name, m)))
            handles.append(module.register_forward_hook(lambda m, args, output: leave(output)))
        _run(model, input_shape)
    finally:
        for handle in handles:
            handle.remove()
    return rows


def parameter_count(model: nn.Module) -> int:
    """The number of parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def flop_count(model: nn.Module, input_shape: Sequence[int]) -> int:
    """FLOP of one forward pass in evaluation mode, as torch's FlopCounterMode counts them.

    A multiplication and an addition are two; only convolutions and matrix products count. A model on the meta
    device is counted without computing or allocating anything.

    Args:
        model: a network whose input is one tensor; it is left as it was.
        input_shape: shape of that tensor, with the batch.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        _run(model, input_shape)
    return int(counter.get_total_flops())


def _run(model: nn.Module, input_shape: Sequence[int]) -> None:
    like = next(model.parameters(), torch.empty(0))
    with _evaluating(model), torch.no_grad():
        model(torch.zeros(tuple(input_shape), dtype=like.dtype, device=like.device))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
