"""What converted modules run: BatchNorm, the residual and ReLU in one op, wherever calling them would do no more.

And views of images, which are channels_last there.

No class here changes what its batch norm or its ReLU is: both remain modules that can be called by themselves, and
whether one op may stand for them is asked at each call. So a hook, an exchanged layer or a changed attribute needs no
new conversion: the layers run one by one.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastcnn import ops
from fastcnn.conversion.derived import forward_of
from fastcnn.conversion.recipe import Recipe
from fastcnn.nn import BatchNorm1d, BatchNorm2d
from fastcnn.nn._plain import is_bare, is_plain
from fastcnn.nn.batch_norm import arguments

# How a forward adds: the code's name, and what it does to the batch norm's output and the other operand.
ADDITIONS: dict[str, Callable[[Any, Any], Any]] = {
    "output + residual": operator.add,
    "residual + output": lambda output, residual: residual + output,
    "output += residual": operator.iadd,
}


def batch_norm_relu(
    norm: Any,
    between: Sequence[nn.Module],
    relu: nn.Module | None,
    input: Tensor,
    residual: Any = None,
    addition: str = "output + residual",
) -> Tensor:
    """Computes relu(between(norm(input)) + residual), in one op where the modules have nothing else to do.

    Args:
        norm: the batch norm.
        between: modules that were nn.Identity when the model was converted.
        relu: the nn.ReLU, or None for torch's function.
        input: what the batch norm gets.
        residual: what is added before the ReLU; None for nothing.
        addition: one of ADDITIONS.
    """
    if fuses(norm, between, relu) and isinstance(input, Tensor) and _same_kind(input, residual):
        norm._check_input_dim(input)
        return ops.batch_norm_relu(input, *arguments(norm), residual)
    output: Tensor = norm(input)
    for module in between:
        output = module(output)
    if residual is not None:
        output = ADDITIONS[addition](output, residual)
    return F.relu(output) if relu is None else relu(output)


def fuses(norm: nn.Module, between: Sequence[nn.Module], relu: nn.Module | None) -> bool:
    """Whether one op may stand for the modules: they are what they seem, and nothing watches them."""
    return (
        is_fast_norm(type(norm))
        and is_bare(norm)
        and (relu is None or is_plain(relu, nn.ReLU))
        and all(is_plain(module, nn.Identity) for module in between)
        and not torch_module._has_any_global_hook()
    )


def is_fast_norm(kind: Any) -> bool:
    """Whether a class's forward is that of our batch norm."""
    if not issubclass(kind, nn.modules.batchnorm._NormBase):  # TorchScript's classes raise when asked for a forward
        return False
    forward = forward_of(kind)
    return forward is BatchNorm2d.forward or forward is BatchNorm1d.forward


def _same_kind(input: Tensor, residual: Any) -> bool:
    return residual is None or (
        isinstance(residual, Tensor) and residual.shape == input.shape and residual.dtype == input.dtype
    )


def view(input: Tensor, *size: Any) -> Tensor:
    """Computes input.view(*size), which refuses most views of an image whose channels lie side by side.

    Layers of ours return such images, where those that they stand for return images by channels: then it is a copy.
    """
    by_channels = input.dim() == 4 and not input.is_contiguous()
    if by_channels and input.is_contiguous(memory_format=torch.channels_last) and not isinstance(size[0], torch.dtype):
        return input.reshape(*size)
    return input.view(*size)


class FusedSequential(nn.Sequential):
    """A torch.nn.Sequential that runs each BatchNorm with the ReLU after it as one op."""

    def forward(self, input: Any) -> Any:
        """Runs the modules in their order."""
        modules: list[Any] = list(self)
        index = 0
        while index < len(modules):
            relu = find_relu(modules, index)
            if relu is None:
                input = modules[index](input)
                index += 1
            else:
                norm, *between = modules[index:relu]
                input = batch_norm_relu(norm, between, modules[relu], input)
                index = relu + 1
        return input


def find_relu(
    modules: Sequence[nn.Module | None], norm: int, is_norm: Callable[[Any], bool] = is_fast_norm
) -> int | None:
    """The index of the ReLU after the batch norm at index `norm`, with nothing but nn.Identity between them."""
    if not is_norm(type(modules[norm])):
        return None
    for index in range(norm + 1, len(modules)):
        kind = type(modules[index])
        if kind is not nn.Identity:
            return index if kind is nn.ReLU else None
    return None


class FusedForward(nn.Module):
    """A module whose forward is rewritten as its recipe says, for as long as that holds."""

    _stands_for: tuple[Any, Any, Any]  # see derived

    def __init_subclass__(cls) -> None:
        """Gives the class a forward with the signature of the one that it stands for."""
        _, theirs, stands_for = cls._stands_for  # whose own __init_subclass__ is told nothing, as derived's

        @functools.wraps(stands_for or theirs.forward)
        def forward(self: FusedForward, *args: Any, **kwargs: Any) -> Any:
            now = theirs.forward
            done = vars(self).get("_fastcnn")  # None: made of the class by others, or reverted and called all the same
            recipe: Recipe | None = None if done is None else done.recipe
            rewritten = None
            if recipe is not None and not kwargs and now is stands_for:
                rewritten = recipe.forward_for(self, args)
            return now(self, *args, **kwargs) if rewritten is None else rewritten(self, *args)

        cls.forward = forward


class FusedBatchNormAct2d(nn.BatchNorm2d):
    """Over timm.layers.BatchNormAct2d, a batch norm that holds its activation: one op where that is ReLU."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Computes act(drop(batch_norm(input))) of Tensor[N, C, H, W]."""
        torch._assert(input.ndim == 4, f"expected 4D input (got {input.ndim}D input)")
        if is_plain(self.drop, nn.Identity) and is_plain(self.act, nn.ReLU) and not torch_module._has_any_global_hook():
            return ops.batch_norm_relu(input, *arguments(self))
        output: Tensor = self.act(self.drop(ops.batch_norm(input, *arguments(self))))
        return output
