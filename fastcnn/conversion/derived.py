"""Classes that put a forward of ours over a class of somebody else's, made when they are needed.

Such a class has no name to be imported by: its instances are pickled, and copied, by naming the two that it is made of.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

# What a class may define of how its objects are made, copied, read or called, so that ours cannot stand over it.
_SPECIAL = ("__new__", "__reduce__", "__reduce_ex__", "__copy__", "__deepcopy__", "__getattribute__", "__call__")


def derived(ours: Any, theirs: Any) -> type[nn.Module]:
    """The class over `theirs` whose methods are those of `ours` where that has them; the same one at each call."""
    made: type[nn.Module] = _derived(ours, theirs)
    return made


@functools.cache
def _derived(ours: Any, theirs: Any) -> Any:

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = object.__reduce_ex__(self, max(2, int(protocol)))
        return (_new, (ours, theirs), *reduced[2:])

    names = {"__module__": theirs.__module__, "__qualname__": theirs.__qualname__, "__doc__": theirs.__doc__}
    return type(theirs.__name__, (ours, theirs), {**names, "__reduce_ex__": reduce})


def _new(ours: type[nn.Module], theirs: type[nn.Module]) -> nn.Module:
    """An empty object of the derived class, for pickle and copy to fill."""
    kind = derived(ours, theirs)
    return kind.__new__(kind)


def refusal(theirs: type[nn.Module]) -> str | None:
    """Why no class can be derived from `theirs`, if so."""
    for name in _SPECIAL:
        if getattr(theirs, name, None) is not getattr(nn.Module, name, None):
            return f"{theirs.__name__} defines {name}"
    return None
