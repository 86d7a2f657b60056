"""Finds the batch norm whose output a module gives as its own: what the ReLU after the module could be fused with."""

from __future__ import annotations

from torch import Tensor, fx, nn

from fastcnn.conversion.layers import is_norm_act, original_class
from fastcnn.conversion.trace import UntraceableError, trace, variants

ELSEWHERE = "its ReLU is in another module"


def ending(module: nn.Module) -> str | None:
    """The name, in a module, of the batch norm in it whose output is the module's own; "" if it is that batch norm.

    None where there is none, and where the module's forward cannot be traced.
    """
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return "" if _does_no_more(module) else None
    if not holds_norm(module):
        return None
    kind = original_class(module)
    if isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward:
        return _in_children(module, list(module._modules))
    if "forward" in vars(module) or kind.forward is nn.Module.forward or kind.__module__.startswith("torch.nn."):
        return None
    try:
        traced, _ = trace(module, kind, dict.fromkeys(variants(kind.forward)[0], Tensor))
    except UntraceableError:
        return None
    (output,) = (node.args[0] for node in traced.graph.nodes if node.op == "output")
    return of_value(output, module)


def holds_norm(module: nn.Module) -> bool:
    """Whether there is a batch norm in a module, or it is one."""
    return any(isinstance(inner, (nn.BatchNorm1d, nn.BatchNorm2d)) for inner in module.modules())


def _does_no_more(norm: nn.Module) -> bool:
    """Whether a batch norm has no activation of its own: timm's may hold one."""
    kind = original_class(norm)
    if is_norm_act(kind):
        return type(norm.act) is nn.Identity and type(norm.drop) is nn.Identity
    return kind.forward is nn.BatchNorm2d.forward


def _in_children(module: nn.Module, names: list[str]) -> str | None:
    """The ending of the last of these children that is no nn.Identity."""
    names = [name for name in names if type(module._modules[name]) is not nn.Identity]
    return _joined(module, names[-1]) if names else None


def of_value(value: object, module: nn.Module) -> str | None:
    """The name of the batch norm that a value of a module's forward comes from as it is."""
    value = before_identities(value, module)
    if not isinstance(value, fx.Node) or value.op != "call_module":
        return None
    return _joined(module, str(value.target))


def before_identities(value: object, module: nn.Module) -> object:
    """What a value of a module's forward was before the nn.Identity that it went through."""
    while isinstance(value, fx.Node) and value.op == "call_module" and len(value.args) == 1:
        if type(module.get_submodule(str(value.target))) is not nn.Identity:
            break
        value = value.args[0]
    return value


def _joined(module: nn.Module, name: str) -> str | None:
    inner = ending(module.get_submodule(name))
    return None if inner is None else f"{name}.{inner}" if inner else name
