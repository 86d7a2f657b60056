"""Which single layers change their class, to what, and how their weights are kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from fastcnn import nn as fast
from fastcnn.conversion.derived import derived, is_exchanged, is_made, refusal
from fastcnn.conversion.fused import FusedBatchNormAct2d, FusedSequential
from fastcnn.conversion.recipe import Recipe

# torch's class, ours, and the methods that ours stands for.
_KINDS: list[tuple[type[nn.Module], type[nn.Module], tuple[str, ...]]] = [
    (nn.Conv2d, fast.Conv2d, ("forward", "_conv_forward", "register_parameter")),
    (nn.MaxPool2d, fast.MaxPool2d, ("forward",)),
    (nn.AvgPool2d, fast.AvgPool2d, ("forward",)),
    (nn.AdaptiveAvgPool2d, fast.AdaptiveAvgPool2d, ("forward",)),
    (nn.BatchNorm1d, fast.BatchNorm1d, ("forward", "_check_input_dim")),
    (nn.BatchNorm2d, fast.BatchNorm2d, ("forward", "_check_input_dim")),
]
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Conversion:
    """What convert changed of one module; kept on the module, so that its copies know it too.

    Attributes:
        original: the class that the module had.
        converted: whether its class is changed; not where torch's layer was measured to be faster.
        strides: the weight's, before it became channels_last; None where it is as it was.
        recipe: of a module whose forward is rewritten.
        kept: why the layer stays torch's, which only a measurement or an attempt told.
    """

    original: type[nn.Module]
    converted: bool = True
    strides: tuple[int, ...] | None = None
    recipe: Recipe | None = None
    kept: str | None = None


def conversion(module: nn.Module) -> Conversion | None:
    """What convert changed of the module; None where somebody has given it another class since."""
    done: Conversion | None = vars(module).get("_fastcnn")
    return None if done is None or (done.converted and not is_made(type(module))) else done


def class_under(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that one of convert's own making stands over; another one itself.

    What a model makes of the class of a converted module, as slicing a Sequential does, has no Conversion.
    """
    if cls is FusedSequential:
        return nn.Sequential
    under: type[nn.Module] = vars(cls)["_stands_for"][1] if "_stands_for" in vars(cls) else cls
    return under


def original_class(module: nn.Module) -> type[nn.Module]:
    """The module's class before its conversion."""
    done = conversion(module)
    return class_under(type(module)) if done is None or not done.converted else done.original


def class_for(module: nn.Module) -> type[nn.Module] | str | None:
    """The class of ours for a layer of torch's; or why it stays as it is; None if there is nothing to do."""
    cls = original_class(module) if is_exchanged(type(module)) else type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a TorchScript" if module.original_name in {kind.__name__ for kind, *_ in _KINDS} else None
    if any(issubclass(cls, ours) for _, ours, _ in _KINDS) or issubclass(cls, FusedBatchNormAct2d):
        return None
    for theirs, ours, methods in _KINDS:
        if isinstance(module, theirs):
            return _instance_refusal(module) or _class_over(cls, theirs, ours, methods)
    return None


def _class_over(
    cls: type[nn.Module], theirs: type[nn.Module], ours: type[nn.Module], methods: tuple[str, ...]
) -> type[nn.Module] | str | None:
    if cls is theirs:
        return ours
    if cls.__module__.partition(".")[0] == "fastcnn":
        return None
    reason = refusal(cls)
    if reason is not None:
        return reason
    if is_norm_act(cls):
        return derived(FusedBatchNormAct2d, cls)
    for method in methods:
        if getattr(cls, method) is not getattr(theirs, method):
            return f"{cls.__name__} has its own {method}"
    return derived(ours, cls)


def is_norm_act(cls: type[nn.Module]) -> bool:
    """Whether a class is timm's batch norm that holds its activation."""
    return (cls.__module__, cls.__name__) == ("timm.layers.norm_act", "BatchNormAct2d")


def _instance_refusal(module: nn.Module) -> str | None:
    done = conversion(module)
    if done is not None and done.kept is not None:
        return done.kept
    if "forward" in vars(module):
        return "this one object has a forward of its own"
    if isinstance(module, LazyModuleMixin):
        return "its sizes are not known before its first input; convert the model again after it"
    if parametrize.is_parametrized(module):
        return "it is parametrized (torch.nn.utils.parametrize); convert the model before parametrizing it"
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is None or name == "num_batches_tracked":
            continue
        if not _is_tensor(tensor):
            return f"its {name} is a {type(tensor.data).__name__}"
        if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided:
            return f"its {name} has {tensor.dtype}, {tensor.layout}"
    return None


def change(module: nn.Module, cls: type[nn.Module], recipe: Recipe | None = None) -> None:
    """Gives a module its new class, and notes the old one."""
    done = Conversion(original_class(module), recipe=recipe, strides=_strides_before(module))
    try:
        module.__class__ = cls
    except TypeError as error:  # objects of the two are laid out differently
        done = Conversion(type(module), converted=False, kept=str(error))
    vars(module)["_fastcnn"] = done


def keep(module: nn.Module, reason: str) -> None:
    """Gives a converted layer torch's class back, and notes why."""
    done = Conversion(original_class(module), converted=False, strides=_strides_before(module), kept=reason)
    _restore_class(module, done.original)
    vars(module)["_fastcnn"] = done


def forget_kept(module: nn.Module) -> None:
    """Lets a layer that was kept be converted again."""
    done = conversion(module)
    if done is not None:
        done.kept = None


def _strides_before(module: nn.Module) -> tuple[int, ...] | None:
    done: Conversion | None = vars(module).get("_fastcnn")
    return None if done is None else done.strides


def undo(module: nn.Module) -> None:
    """Makes of a module what it was before its conversion, its values apart."""
    done: Conversion | None = vars(module).pop("_fastcnn", None)
    if done is None:
        under = class_under(type(module))
        if under is not type(module):
            module.__class__ = under
        return
    if done.converted and is_made(type(module)):
        _restore_class(module, done.original)
    if done.strides is not None:
        for parameter in module.parameters():  # the weight has another name where it was parametrized since
            _restore_strides(parameter, done.strides)


def _restore_strides(parameter: nn.Parameter, strides: tuple[int, ...]) -> None:
    """Lays a parameter out as the weight was before its conversion, if these strides fit its shape."""
    if parameter.dim() != len(strides):
        return
    with torch.inference_mode(False):
        as_before = torch.empty_strided(parameter.shape, strides, dtype=parameter.dtype, device=parameter.device)
        if as_before.untyped_storage().nbytes() == parameter.numel() * parameter.element_size():
            parameter.data = as_before.copy_(parameter.data)
            _lay_out_gradient(parameter)


def _restore_class(module: nn.Module, original: type[nn.Module]) -> None:
    """Gives a module its class back; one that was parametrized since stays so, over that class."""
    cls = type(module)
    if parametrize.is_parametrized(module):
        own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(f"Parametrized{original.__name__}", (original,), own)
    else:
        module.__class__ = original


def weights_to_channels_last(model: nn.Module) -> None:
    """Lays the convolutions' weights out for our kernels, as the same parameters.

    Memory that others look at too stays where it is: a part of a larger tensor, one that other tensors or processes
    share, and all under DistributedDataParallel, which has noted the strides.
    """
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        return
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers()) if _is_tensor(t)}
    users = Counter(t.untyped_storage()._cdata for t in tensors.values() if t.layout is torch.strided)
    for module in model.modules():
        done = conversion(module)
        if done is None or not isinstance(module, nn.Conv2d):
            continue
        weight: Any = module._parameters.get("weight")
        if id(weight) in tensors and weight.dim() == 4:
            storage = weight.untyped_storage()
            alone = storage.nbytes() == weight.numel() * weight.element_size() and users[storage._cdata] == 1
            if alone and not weight.is_shared() and not weight.is_inference():
                _to_channels_last(weight, done)


def _is_tensor(tensor: Tensor) -> bool:
    """Whether it is a tensor or parameter of torch's own, with values."""
    return not is_lazy(tensor) and type(tensor.data) is Tensor


def _to_channels_last(weight: nn.Parameter, done: Conversion) -> None:
    strides = weight.stride()
    with torch.inference_mode(False):  # or the weight could not be trained any more
        # .to() sets the strides of a one-channel weight too, where .contiguous() would leave them.
        data = weight.data.to(memory_format=torch.channels_last)
        if data.stride() != strides:
            weight.data = data
            _lay_out_gradient(weight)
            done.strides = done.strides or strides  # else others have put a new weight there since


def _lay_out_gradient(parameter: nn.Parameter) -> None:
    """Gives a gradient the strides of its parameter: torch's fused optimizers read both in the order of memory."""
    gradient = parameter.grad
    if gradient is not None and type(gradient) is Tensor and gradient.layout is torch.strided:
        gradient.data = torch.empty_like(parameter.data, dtype=gradient.dtype).copy_(gradient.data)
