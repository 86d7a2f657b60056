"""A rewritten forward as a module keeps it: text that pickles and copies, and what must hold for it to be right."""

from __future__ import annotations

import functools
import linecache
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Guard:
    """What the forward read of a module when it was traced, which is part of the rewritten one.

    Attributes:
        path: where the module is, from the one whose forward it is.
        name: the attribute.
        kind: "value", "module", "tensor", "none" (registered, but None), "children" (the names of them) or "absent".
        value: of "value" and "children".
    """

    path: tuple[str, ...]
    name: str
    kind: str
    value: Any = None

    def holds(self, root: nn.Module) -> bool:
        """Whether the forward would read the same now."""
        owner: nn.Module | None = root
        for step in self.path:
            owner = owner._modules.get(step) if owner is not None else None
        if owner is None:
            return False
        if self.kind == "value":
            return self.name in vars(owner) and bool(vars(owner)[self.name] == self.value)
        if self.kind == "children":
            return bool(tuple(owner._modules) == self.value)
        if self.kind == "absent":
            return not hasattr(owner, self.name)
        if self.kind == "module":
            return owner._modules.get(self.name) is not None
        held: Any = owner._parameters.get(self.name)
        held = owner._buffers.get(self.name) if held is None else held
        return (held is not None) == (self.kind == "tensor") and owner._modules.get(self.name) is None


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
