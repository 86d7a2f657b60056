"""What convert does with a model, layer by layer, and why: analysis only, which changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fastcnn.conversion import patterns
from fastcnn.conversion.derived import derived, is_exchanged, refusal
from fastcnn.conversion.endings import ELSEWHERE, ending, holds_norm
from fastcnn.conversion.fused import FusedBatchNormAct2d, FusedForward, FusedSequential, find_relu, is_fast_norm
from fastcnn.conversion.layers import class_for, conversion, original_class
from fastcnn.conversion.recipe import Recipe, Variant
from fastcnn.conversion.trace import UntraceableError, trace, variants
from fastcnn.nn._plain import is_bare

_LISTS = (nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Fused:
    """A batch norm that runs together with the ReLU after it: its qualified name, and the pattern."""

    name: str
    pattern: str


@dataclass(frozen=True)
class Unfused:
    """A batch norm that seems to have a ReLU after it, and runs by itself: qualified name, pattern, reason."""

    name: str
    pattern: str
    reason: str


@dataclass
class Plan:
    """What convert makes of a model.

    Attributes:
        fused: batch norms that run with the ReLU after them as one op.
        unfused: those that do not.
        kept: layers of a kind that convert knows and leaves as torch's: qualified name and reason.
        classes: the new class of each module that gets one, by qualified name.
        recipes: how forwards are rewritten, by qualified name.
    """

    fused: list[Fused] = field(default_factory=list)
    unfused: list[Unfused] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    classes: dict[str, type[nn.Module]] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)


def plan(model: nn.Module) -> Plan:
    """Says what convert does with a model, or did with a converted one, and changes nothing.

    Args:
        model: the model.

    Raises:
        TypeError: it is no torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fastcnn.convert: expected a torch.nn.Module, but got {type(model).__name__}")
    result = Plan()
    has_images = any(isinstance(module, patterns.IMAGES) for module in model.modules())
    for name, module in model.named_modules():
        cls = class_for(module)
        if isinstance(cls, str):
            result.kept[name] = cls
        elif cls is not None:
            result.classes[name] = cls
        final = type(module) if not isinstance(cls, type) else cls
        if issubclass(final, FusedBatchNormAct2d):
            _plan_norm_act(module, name, result)
        elif (
            next(_norms(module, (*_LISTS, nn.Sequential)), None) is not None
            or _may_end_others(module)
            or (has_images and _may_view(original_class(module)))
        ):
            _plan_block(module, name, result)
    return result


def _becomes_norm(module: nn.Module) -> bool:
    """Whether a module is our batch norm, or convert makes it one."""
    cls = class_for(module)
    return is_fast_norm(cls if isinstance(cls, type) else type(module))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and not original_class(module).__module__.startswith(
        "timm."
    )


def _norms(module: nn.Module, containers: tuple[type[nn.Module], ...]) -> Iterator[str]:
    """The batch norms that a module's own forward may call: its children, and those in containers of them."""
    for name, child in module.named_children():
        if _is_norm(child):
            yield name
        elif isinstance(child, containers):
            yield from (f"{name}.{inner}" for inner in _norms(child, containers))


def _may_end_others(module: nn.Module) -> bool:
    """Whether a module's forward may have a ReLU for the batch norms of the modules in it."""
    return _mentions_relu(module, original_class(module)) and holds_norm(module)


def _plan_norm_act(module: Any, name: str, result: Plan) -> None:
    if type(module.act) is not nn.ReLU:
        return
    if type(module.drop) is nn.Identity:
        result.fused.append(Fused(name, "BatchNorm + ReLU"))
    else:
        result.unfused.append(Unfused(name, "BatchNorm + ReLU", f"{type(module.drop).__name__} between them"))


def _plan_block(module: nn.Module, name: str, result: Plan) -> None:
    kind = original_class(module)
    if kind.__module__.startswith("fastcnn.nn") or kind.forward is nn.Module.forward:
        return
    if isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward:
        _plan_sequential(module, kind, name, result)
        return
    reason = _block_refusal(module, kind)
    if reason is None:
        try:
            reason = _plan_forward(module, kind, name, result)
        except UntraceableError as error:
            reason = str(error)
    if reason is not None and _mentions_relu(module, kind):
        for norm in _norms(module, _LISTS):
            why = f"the forward of {kind.__name__} {reason}"
            result.unfused.append(Unfused(_join(name, norm), "BatchNorm + ReLU", why))


def _block_refusal(module: nn.Module, kind: type[nn.Module]) -> str | None:
    if "forward" in vars(module):
        return "is this one object's own"
    reason = refusal(kind)
    return None if reason is None else f"cannot be stood for: {reason}"


def _plan_sequential(module: nn.Sequential, kind: type[nn.Module], name: str, result: Plan) -> None:
    reason = _block_refusal(module, kind)
    names, modules = list(module._modules), list(module._modules.values())
    found = False
    for index in range(len(modules)):
        norm: Any = modules[index]
        relu = find_relu(modules, index, lambda cls: cls is not nn.Identity)
        last = None if relu is None or _is_norm(norm) else ending(norm)
        if last is not None:
            result.unfused.append(Unfused(_join(name, _join(names[index], last)), "BatchNorm + ReLU", ELSEWHERE))
        if relu is None or not _is_norm(norm):
            continue
        full = _join(name, names[index])
        why = reason
        if why is None and not _becomes_norm(norm):
            why = _why_kept(norm)
        if why is None:
            found = True  # with hooks too: it fuses as soon as they are gone
            why = _hooked(norm) or _hooked(modules[relu])
        if why is None:
            result.fused.append(Fused(full, "BatchNorm + ReLU"))
        else:
            result.unfused.append(Unfused(full, "BatchNorm + ReLU", why))
    if found and (not isinstance(module, FusedSequential) or is_exchanged(type(module))):
        result.classes[name] = FusedSequential if kind is nn.Sequential else derived(FusedSequential, kind)


def _why_kept(norm: nn.Module) -> str:
    reason = class_for(norm)
    return reason if isinstance(reason, str) else f"{type(norm).__name__} has its own forward"


def _hooked(module: nn.Module | None) -> str | None:
    """Why a module's call cannot be left out as long as it has what it has, if so."""
    if module is None or is_bare(module):
        return None
    return f"the {type(module).__name__} has hooks or a forward of its own"


def _plan_forward(module: nn.Module, kind: type[nn.Module], name: str, result: Plan) -> str | None:
    """Plans a forward's rewriting; returns why nothing of it can be traced."""

    def called(node: Any) -> nn.Module | None:
        return module.get_submodule(node.target) if node.op == "call_module" else None

    rewritten: dict[tuple[type, ...], Variant] = {}
    fused: dict[str, Fused] = {}
    unfused: dict[str, Unfused] = {}
    reason: str | None = None
    waiting = variants(kind.forward)
    while waiting:
        arguments = waiting.pop(0)
        try:
            traced, asked = trace(module, kind, arguments)
        except UntraceableError as error:
            reason = reason or str(error)
            if list(arguments.values()) == [Tensor]:  # the one argument may be a list of tensors
                waiting.append(dict.fromkeys(arguments, list))
            continue
        if asked and list not in arguments.values():
            waiting.append({argument: list if argument in asked else type_ for argument, type_ in arguments.items()})
        found = []
        for pattern in patterns.find(traced.graph, module, _is_norm):
            norm = pattern.norm if isinstance(pattern, patterns.Unfusable) else pattern.norm.target
            full = _join(name, str(norm))
            if isinstance(pattern, patterns.Unfusable):
                unfused[full] = Unfused(full, pattern.name, pattern.reason)
            elif not _becomes_norm(module.get_submodule(str(norm))):
                unfused[full] = Unfused(full, pattern.name, _why_kept(module.get_submodule(str(norm))))
            else:
                found.append(pattern)  # hooked ones too: they fuse as soon as the hooks are gone
                hooked = _hooked(module.get_submodule(str(norm))) or _hooked(called(pattern.relu))
                if hooked is None:
                    fused[full] = Fused(full, pattern.name)
                else:
                    unfused[full] = Unfused(full, pattern.name, hooked)
        viewing = patterns.views(traced.graph, module)
        if found or viewing:
            source = patterns.rewrite(traced.graph, found, viewing, called)
            try:
                rewritten[tuple(arguments.values())] = Variant(source, traced.guards)
            except SyntaxError as error:  # torch.fx writes layers called `class` and the like as attributes
                raise UntraceableError(f"cannot be written as Python: {str(error.text).strip()}") from error
    result.fused.extend(fused.values())
    result.unfused.extend(entry for full, entry in unfused.items() if full not in fused)
    if rewritten:
        result.recipes[name] = Recipe(rewritten)
        if conversion(module) is None or is_exchanged(type(module)):
            result.classes[name] = derived(FusedForward, kind)
    return None if rewritten or unfused else reason


def _mentions_relu(module: nn.Module, kind: type[nn.Module]) -> bool:
    names = _names(inspect.unwrap(getattr(kind, "forward", None)))  # type: ignore[arg-type]
    return any("relu" in name for name in names) or any(type(child) is nn.ReLU for child in module.children())


def _may_view(kind: type[nn.Module]) -> bool:
    """Whether a class's forward, or a method or function that it names, names `view`."""
    forward = inspect.unwrap(getattr(kind, "forward", None))  # type: ignore[arg-type]
    space = getattr(forward, "__globals__", {})
    named = [getattr(kind, name, space.get(name)) for name in _names(forward)]
    return any("view" in _names(function) for function in (forward, *named))


def _names(function: Any) -> tuple[str, ...]:
    """What the code of a function names; nothing where there is none to see."""
    names: tuple[str, ...] = getattr(getattr(function, "__code__", None), "co_names", ())
    return names


def _join(name: str, inner: str) -> str:
    return ".".join(part for part in (name, inner) if part)
