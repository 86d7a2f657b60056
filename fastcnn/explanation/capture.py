"""One run of a model that leaves no trace, and what its layers were called with: shapes and strides, no values."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from fastcnn.conversion.fused import view
from fastcnn.explanation.layers import is_known, is_ours, kind_of, own_forward, runs_as_one
from fastcnn.explanation.state import untouched, without_global_hooks
from fastcnn.nn import DenseBlock

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# Their last arguments are the residual, eps, and whether ReLU is applied.
_BATCH_NORMS = (torch.ops.fastcnn.batch_norm_train.default, torch.ops.fastcnn.batch_norm_infer.default)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor without its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """Describe a tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)

    @property
    def layout(self) -> str:
        """The memory format's name: channels_last, contiguous or strided."""
        like = torch.empty_strided(self.shape, self.strides, device="meta")
        # Of a tensor with one channel or one pixel both are true, and no kernel sees a difference.
        if len(self.shape) == 4 and like.is_contiguous(memory_format=torch.channels_last):
            return "channels_last"
        return "contiguous" if like.is_contiguous() else "strided"

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return such a tensor of normally distributed values (integers: of 0 to 99), a leaf."""
        values = torch.empty_strided(self.shape, self._dense_strides(), dtype=self.dtype)
        if self.dtype.is_floating_point or self.dtype.is_complex:
            wide = torch.promote_types(self.dtype, torch.float32)
            values.copy_(torch.randn(self.shape, generator=generator, dtype=wide))
        else:
            values.copy_(torch.randint(0, 100, self.shape, generator=generator))
        return values.to(self.device).requires_grad_(self.requires_grad)

    def _dense_strides(self) -> tuple[int, ...]:
        """The strides, but those of a contiguous tensor where elements share their place, which nobody can fill."""
        if any(stride == 0 and size > 1 for stride, size in zip(self.strides, self.shape, strict=True)):
            return torch.empty(self.shape, device="meta").stride()
        return self.strides


@dataclass(frozen=True)
class Call:
    """A layer's call in the model's run.

    Attributes:
        name: the layer's qualified name in the model.
        module: the layer.
        kind: the name of the fastcnn.nn module that does what was called.
        inputs: its tensors: the input; the input and the residual; or those that it joins.
        training: the layer's training flag.
        times: how often it was called so.
        problem: why the call cannot be repeated by itself; "" where it can.
        foreign: the class whose forward is not that of its kind, so that nothing of ours stands for it; else "".
    """

    name: str
    module: nn.Module
    kind: str
    inputs: tuple[TensorSpec, ...]
    training: bool
    times: int = 1
    problem: str = ""
    foreign: str = ""


def capture(model: nn.Module, example: Any, grad: bool) -> list[Call]:
    """Run `model` once on `example` and list the calls of the layers that fastcnn knows, in order of the first call.

    Convolutions' weights are channels_last in the run, as fastcnn keeps them, so that the strides are those of a
    converted model. With `grad` a graph is built, as in training, to see what needs a gradient.
    """
    record = _Record(is_torchs=not any(is_ours(module) for module in model.modules()))
    watched = list(_watched(model))
    with untouched(model), without_global_hooks():
        _strip(model)
        for name, module in watched:
            record.watch(name, module)
        args, kwargs = _arguments(_pytree.tree_map(_copy, example))
        with torch.set_grad_enabled(grad), record:
            model(*args, **kwargs)
    counts = Counter(record.calls)
    return [replace(call, times=times) for call, times in counts.items()]


class _Record(TorchFunctionMode):
    """The calls of the layers that it watches while it is entered.

    Batch norms are not watched by a hook, as a hook would keep them from being fused with what follows: their forward,
    and every op that stands for it, asks `_check_input_dim` first. What then runs shows whether ReLU is part of it.
    """

    def __init__(self, is_torchs: bool) -> None:
        super().__init__()
        self.is_torchs = is_torchs  # then its views expect images NCHW, which channels_last weights do not give
        self.calls: list[Call] = []
        self.normalized: Tensor | None = None

    def watch(self, name: str, module: nn.Module) -> None:
        if isinstance(module, _BatchNorm) and not own_forward(module):
            checks: Callable[[Tensor], None] = module._check_input_dim

            def check_input_dim(input: Tensor) -> None:
                self._note(name, module, (input,), {})
                checks(input)

            vars(module)["_check_input_dim"] = check_input_dim
        else:
            module.register_forward_pre_hook(
                lambda m, args, kwargs: self._note(name, m, args, kwargs), with_kwargs=True
            )

    def _note(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors, problem = _tensors(args, kwargs)
        specs = tuple(TensorSpec.of(t) for t in tensors)
        foreign = type(module).__name__ if own_forward(module) else ""
        call = Call(name, module, kind_of(module), specs, module.training, problem=problem, foreign=foreign)
        self.calls.append(call)
        self.normalized = tensors[0] if isinstance(module, _BatchNorm) and tensors else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.normalized is not None and func in _BATCH_NORMS and args[0] is self.normalized:
            residual, _, relu = args[-3:]
            specs = tuple(TensorSpec.of(t) for t in (args[0], residual) if t is not None)
            kind = "BatchNormReLU2d" if relu else self.calls[-1].kind
            self.calls[-1] = replace(self.calls[-1], kind=kind, inputs=specs, foreign="")  # ours runs, whoever calls it
            self.normalized = None
        if self.is_torchs and func is Tensor.view and not kwargs:
            return view(*args)
        return func(*args, **(kwargs or {}))


def check(model: object, example: object) -> None:
    """Raise what a wrong `model` or `example` deserves.

    Raises:
        TypeError: no module, or one in TorchScript; no example that can be passed to a model.
        ValueError: parameters that wait for a first run to get their shapes.
        NotImplementedError: tensors without data.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fastcnn.explain: expected model to be a torch.nn.Module, but got {type(model).__name__}")
    if not isinstance(example, (Tensor, tuple, list, Mapping)):
        raise TypeError(
            "fastcnn.explain: expected example to be a Tensor, or a tuple or dict of the model's arguments, but got "
            f"{type(example).__name__}"
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"fastcnn.explain: TorchScript is not supported, but got a ScriptModule, {name or 'model'}")
    tensors = [("example", t) for t in _pytree.tree_leaves(example) if isinstance(t, Tensor)]
    for name, tensor in [*model.named_parameters(), *model.named_buffers(), *tensors]:
        if is_lazy(tensor):
            raise ValueError(f"fastcnn.explain: {name} is not initialized: run the lazy model once before")
        if tensor.is_meta:
            raise NotImplementedError(f"fastcnn.explain: {name} is on the meta device: there is no data to run on")


def _watched(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers to watch; where several run as one, that one."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside or not is_known(module):
            continue
        if runs_as_one(module):
            inside.update(module.modules())
        elif isinstance(module, DenseBlock):
            continue
        yield name, module


def _strip(model: nn.Module) -> None:
    """Take all hooks off, and make the convolutions' weights channels_last, for untouched() to put back."""
    weights: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for hooks in _HOOKS:
            vars(module)[hooks] = OrderedDict()
        vars(module)["_compiled_call_impl"] = None  # Module.compile's, which would run without hooks
        weight = module._parameters.get("weight")
        if isinstance(module, nn.Conv2d) and weight is not None and not own_forward(module):
            if id(weight) not in weights:
                nhwc = weight.detach().to(memory_format=torch.channels_last)
                weights[id(weight)] = nn.Parameter(nhwc, weight.requires_grad)
            module._parameters["weight"] = weights[id(weight)]


def _copy(value: Any) -> Any:
    """A copy of a tensor, so that a model may write to its input."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return ((example,), {}) if isinstance(example, Tensor) else (tuple(example), {})


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], str]:
    """The tensors of a layer's call, and what stands in the way of calling the layer on others like them."""
    values = [v for v in _pytree.tree_leaves((args, kwargs)) if v is not None]
    odd = [v for v in values if type(v) not in (Tensor, nn.Parameter)]
    problem = f"called with {type(odd[0]).__name__}" if odd else "" if values else "called without a tensor"
    return [v for v in values if isinstance(v, Tensor) and not odd], problem
