"""The layers that fastcnn knows, each as two functions of the same tensors: with our ops, and with torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn import ops
from fastcnn.conversion.derived import forward_of
from fastcnn.explanation.state import untouched
from fastcnn.nn import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    BatchNormReLU2d,
    Concat,
    Conv2d,
    DenseBlock,
    MaxPool2d,
)
from fastcnn.nn.batch_norm import arguments

Function = Callable[[Sequence[Tensor], Sequence[Any]], Tensor]

# Ours before torch's, which they are subclasses of.
_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "DenseBlock": (DenseBlock,),
    "Concat": (Concat,),
    "Conv2d": (Conv2d, nn.Conv2d),
    "BatchNormReLU2d": (BatchNormReLU2d,),
    "BatchNorm2d": (BatchNorm2d, nn.BatchNorm2d),
    "BatchNorm1d": (BatchNorm1d, nn.BatchNorm1d),
    "MaxPool2d": (MaxPool2d, nn.MaxPool2d),
    "AvgPool2d": (AvgPool2d, nn.AvgPool2d),
    "AdaptiveAvgPool2d": (AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d),
}


@dataclass(frozen=True)
class Layer:
    """A layer taken out of its model.

    Attributes:
        kind: the name of the fastcnn.nn module that stands for it.
        settings: all that its functions depend on but tensors; two layers alike in it and in their tensors' shapes
            take the same time.
        parameters: its parameters, apart from the model's graph and sharing the model's memory; a convolution's
            weight is channels_last.
        ours: the layer as fastcnn's ops compute it, of the inputs and the parameters.
        theirs: the same of torch's ops.
    """

    kind: str
    settings: tuple[Any, ...]
    parameters: tuple[Tensor | None, ...]
    ours: Function
    theirs: Function


def is_known(module: nn.Module) -> bool:
    """Whether a module is a layer of ours, one of torch's that ours stand for, or derived from one of those."""
    return isinstance(module, tuple(kind for kinds in _KINDS.values() for kind in kinds))


def is_ours(module: nn.Module) -> bool:
    """Whether a module is a layer of ours, and not torch's."""
    return isinstance(module, tuple(kinds[0] for kinds in _KINDS.values()))


def kind_of(module: nn.Module) -> str:
    """The name of the fastcnn.nn module that stands for a module that is_known."""
    return next(name for name, kinds in _KINDS.items() if isinstance(module, kinds))


def own_forward(module: nn.Module) -> bool:
    """Whether the module computes something of its own instead of what its kind does."""
    forwards = {kind.forward for kind in _KINDS[kind_of(module)]}
    own = forward_of(type(module)) not in forwards or "forward" in vars(module)
    if isinstance(module, nn.Conv2d):
        computes = {nn.Conv2d._conv_forward, Conv2d._conv_forward}
        own = own or type(module)._conv_forward not in computes or "_conv_forward" in vars(module)
    return own


def runs_as_one(module: nn.Module) -> bool:
    """Whether the layers inside a layer may run as one op."""
    return isinstance(module, DenseBlock) and module.is_fusable()


def take_out(module: nn.Module, kind: str) -> Layer:
    """Take a module that is_known and has no own_forward out of its model, for a call of this kind."""
    with untouched(module):  # a weight may be computed when it is read, and write to buffers
        if kind == "BatchNormReLU2d":
            return replace(_batch_norm(module, relu=True), kind=kind)
        return _TAKE[kind](module)


def _leaf(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().requires_grad_(tensor.requires_grad)


def _conv2d(module: Any) -> Layer:
    activation, weight = getattr(module, "_fused_activation", None), _leaf(module.weight)
    assert weight is not None
    weight = weight.detach().to(memory_format=torch.channels_last).requires_grad_(weight.requires_grad)
    padded, padding = module.padding_mode != "zeros", module.padding
    settings = (module.stride, (0, 0) if padded else padding, module.dilation, module.groups)

    def pad(input: Tensor) -> Tensor:
        return F.pad(input, module._reversed_padding_repeated_twice, mode=module.padding_mode) if padded else input

    def ours(inputs: Sequence[Tensor], parameters: Sequence[Any]) -> Tensor:
        weight, bias = parameters
        return ops.conv2d(pad(inputs[0]), weight, bias, *settings, activation)

    def theirs(inputs: Sequence[Tensor], parameters: Sequence[Any]) -> Tensor:
        weight, bias = parameters
        output: Tensor = F.conv2d(pad(inputs[0]), weight, bias, *settings)
        return output.relu_() if activation == "relu" else output

    extra = (module.padding_mode, str(module._reversed_padding_repeated_twice), activation)
    return Layer("Conv2d", (*map(str, settings), *extra), (weight, _leaf(module.bias)), ours, theirs)


def _batch_norm_arguments(module: Any) -> tuple[Any, ...]:
    """What follows the input, the parameters left out, with running statistics of its own."""
    with untouched(module):
        mean, var, _, _, training, momentum, eps = arguments(module)
    return mean, var, training, momentum, eps


def _batch_norm(module: Any, relu: bool = False) -> Layer:
    mean, var, training, momentum, eps = _batch_norm_arguments(module)

    def ours(inputs: Sequence[Tensor], parameters: Sequence[Any]) -> Tensor:
        weight, bias = parameters
        common = (inputs[0], mean, var, weight, bias, training, momentum, eps)
        if not relu:
            return ops.batch_norm(*common)
        return ops.batch_norm_relu(*common, residual=inputs[1] if len(inputs) > 1 else None)

    def theirs(inputs: Sequence[Tensor], parameters: Sequence[Any]) -> Tensor:
        weight, bias = parameters
        output = F.batch_norm(inputs[0], mean, var, weight, bias, training, momentum, eps)
        for residual in inputs[1:]:
            output = output.add_(residual)
        return output.relu_() if relu else output

    settings = (mean is None, training, momentum, eps)
    return Layer(kind_of(module), settings, (_leaf(module.weight), _leaf(module.bias)), ours, theirs)


def _pooling(module: Any, our_op: Any, torch_op: Any, *names: str) -> Layer:
    values = tuple(getattr(module, name) for name in names)

    def run(op: Any) -> Function:
        def call(inputs: Sequence[Tensor], parameters: Sequence[Any]) -> Tensor:
            output = op(inputs[0], *values)
            pooled: Tensor = output[0] if isinstance(output, tuple) else output
            return pooled

        return call

    return Layer(kind_of(module), tuple(map(str, values)), (), run(our_op), run(torch_op))


def _max_pool2d(module: nn.Module) -> Layer:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    return _pooling(module, ops.max_pool2d, F.max_pool2d, *names)


def _avg_pool2d(module: nn.Module) -> Layer:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return _pooling(module, ops.avg_pool2d, F.avg_pool2d, *names)


def _adaptive_avg_pool2d(module: nn.Module) -> Layer:
    return _pooling(module, ops.adaptive_avg_pool2d, F.adaptive_avg_pool2d, "output_size")


def _concat(module: Any) -> Layer:
    def ours(inputs: Sequence[Tensor], parameters: Sequence[Any]) -> Tensor:
        return ops.concat(inputs, module.dim)

    def theirs(inputs: Sequence[Tensor], parameters: Sequence[Any]) -> Tensor:
        return torch.cat(list(inputs), module.dim)

    return Layer("Concat", (module.dim,), (), ours, theirs)


def _dense_block(module: Any) -> Layer:
    pairs = [(_batch_norm(net[0], relu=True), _conv2d(net[2])) for net in module.net]
    statistics = [_batch_norm_arguments(net[0]) for net in module.net]
    parameters = [p for norm, conv in pairs for p in (*norm.parameters, *conv.parameters)]

    def ours(inputs: Sequence[Tensor], parameters: Sequence[Any]) -> Tensor:
        layers, training = [], False
        for i, (mean, var, training, momentum, eps) in enumerate(statistics):  # noqa: B007 - the same in all
            scale, shift, weight, bias = parameters[4 * i : 4 * i + 4]
            layers.append(ops.DenseLayer(mean, var, scale, shift, weight, bias, momentum, eps))
        return ops.dense_block(inputs[0], layers, training)

    def theirs(inputs: Sequence[Tensor], parameters: Sequence[Any]) -> Tensor:
        features = inputs[0]
        for i, (norm, conv) in enumerate(pairs):
            normalized = norm.theirs([features], parameters[4 * i : 4 * i + 2])
            appended = conv.theirs([normalized], parameters[4 * i + 2 : 4 * i + 4])
            features = torch.cat([features, appended], 1)
        return features

    settings = tuple(norm.settings + conv.settings for norm, conv in pairs)
    return Layer("DenseBlock", settings, tuple(parameters), ours, theirs)


_TAKE: dict[str, Callable[[Any], Layer]] = {
    "DenseBlock": _dense_block,
    "Concat": _concat,
    "Conv2d": _conv2d,
    "BatchNorm2d": _batch_norm,
    "BatchNorm1d": _batch_norm,
    "MaxPool2d": _max_pool2d,
    "AvgPool2d": _avg_pool2d,
    "AdaptiveAvgPool2d": _adaptive_avg_pool2d,
}


def conv2d_geometry(module: nn.Conv2d, input: Sequence[int], output: Sequence[int]) -> list[int]:
    """A convolution's call as the library's Conv2dGeometry, for the shapes of its input and output."""
    n, (c, h, w), (k, out_h, out_w) = (input[0] if len(input) == 4 else 1), input[-3:], output[-3:]
    kernel, dilation = module.kernel_size, module.dilation
    pad: tuple[int, ...] = (0, 0)
    if module.padding_mode != "zeros":
        left, right, top, bottom = module._reversed_padding_repeated_twice
        h, w = h + top + bottom, w + left + right
    elif module.padding == "same":
        total = [d * (size - 1) for d, size in zip(dilation, kernel, strict=True)]
        h, w, pad = h + total[0] % 2, w + total[1] % 2, (total[0] // 2, total[1] // 2)
    elif not isinstance(module.padding, str):
        pad = module.padding
    return [n, c, h, w, k, out_h, out_w, *kernel, *module.stride, *pad, *dilation, module.groups]
