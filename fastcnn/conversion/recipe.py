"""A rewritten forward as a module keeps it: text that pickles and copies, and what must hold for it to be right."""

from __future__ import annotations

import functools
import linecache
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Guard:
    """What the forward read of a module when it was traced, which is part of the rewritten one.

    Attributes:
        path: where the module is, from the one whose forward it is; of "global" the Python module's name alone.
        name: the attribute, or the global name.
        kind: "value" (of the object or of its class), "module", "tensor", "none" (registered, but None), "children"
            (the names of them), "absent" or "global".
        value: of "value", "children" and "global".
    """

    path: tuple[str, ...]
    name: str
    kind: str
    value: Any = None
    namespace: ModuleType | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Finds the Python module of a global here, so that torch.compile need not look among all modules."""
        namespace = sys.modules.get(self.path[0]) if self.kind == "global" else None
        object.__setattr__(self, "namespace", namespace)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies the Python module's name, as a module cannot be."""
        return (Guard, (self.path, self.name, self.kind, self.value))

    @property
    def read(self) -> str:
        """What was read, as the forward's code names it."""
        of = () if self.kind == "global" else ("self",)
        return ".".join((*of, *self.path, self.name))

    def holds(self, root: nn.Module) -> bool:
        """Whether the forward would read the same now."""
        if self.kind == "global":
            return _has(self.namespace, self.name, self.value)
        owner: nn.Module | None = root
        for step in self.path:
            owner = owner._modules.get(step) if owner is not None else None
        if owner is None:
            return False
        if self.kind == "value":
            return _has(owner, self.name, self.value)
        if self.kind == "children":
            return bool(tuple(owner._modules) == self.value)
        if self.kind == "absent":
            return not hasattr(owner, self.name)
        if self.kind == "module":
            return owner._modules.get(self.name) is not None
        held: Any = owner._parameters.get(self.name)
        held = owner._buffers.get(self.name) if held is None else held
        return (held is not None) == (self.kind == "tensor") and owner._modules.get(self.name) is None


def _has(owner: object, name: str, value: Any) -> bool:
    if not hasattr(owner, name):
        return False
    held = getattr(owner, name)
    return isinstance(held, type(value)) and bool(held == value)


@dataclass(frozen=True)
class Variant:
    """One rewritten forward, for one kind of arguments."""

    source: str
    guards: tuple[Guard, ...]
    forward: Callable[..., Any] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Makes the function of the text here, so that torch.compile finds it made."""
        object.__setattr__(self, "forward", compiled(self.source))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies the text."""
        return (Variant, (self.source, self.guards))


@dataclass(frozen=True)
class Recipe:
    """The rewritten forwards of a module, by the types of their arguments."""

    variants: dict[tuple[type, ...], Variant]

    def forward_for(self, module: nn.Module, args: tuple[Any, ...]) -> Callable[..., Any] | None:
        """The rewritten forward for these arguments; None where the original one has to run."""
        variant = self.variants.get(tuple([Tensor if isinstance(arg, Tensor) else type(arg) for arg in args]))
        if variant is None or not all([guard.holds(module) for guard in variant.guards]):
            return None
        return variant.forward


@functools.cache
def compiled(source: str) -> Callable[..., Any]:
    """The function `forward` that the source defines."""
    name = f"<fastcnn.convert {hash(source):x}>"
    namespace: dict[str, Any] = {}
    exec(compile(source, name, "exec"), namespace)
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for tracebacks
    forward: Callable[..., Any] = namespace["forward"]
    return forward
