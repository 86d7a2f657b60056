"""Classes that put a forward of ours over a class of somebody else's, made when they are needed.

Such a class has no name to be imported by: its instances are pickled, and copied, by naming the two that it is made of.
"""

from __future__ import annotations

import functools
import hashlib
from types import CellType, CodeType, FunctionType
from typing import Any

from torch import nn

# What a class may define of how its objects are made, copied, read or called, so that ours cannot stand over it.
_SPECIAL = ("__new__", "__reduce__", "__reduce_ex__", "__copy__", "__deepcopy__", "__getattribute__", "__call__")


_EMPTY: Any = CellType()  # the variable of an enclosing function that has no value yet


class _Unannounced:
    """Tells the class that one of ours is made over nothing: it may keep a list of what is made of it."""

    def __init_subclass__(cls) -> None:
        """Does nothing."""


def derived(ours: Any, theirs: Any) -> type[nn.Module]:
    """The class over `theirs` whose methods are those of `ours` where that has them; the same one at each call.

    Its forward stands for the one that `theirs` has now: where that is exchanged later, the new one runs.
    """
    made: type[nn.Module] = _derived(ours, theirs, theirs.forward)
    return made


@functools.cache
def _derived(ours: Any, theirs: Any, forward: Any) -> Any:

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = object.__reduce_ex__(self, max(2, int(protocol)))
        return (_new, (ours, theirs, _fingerprint(forward)), *reduced[2:])

    names = {"__module__": theirs.__module__, "__qualname__": theirs.__qualname__, "__doc__": theirs.__doc__}
    names |= {"__reduce_ex__": reduce, "_stands_for": (ours, theirs, forward)}
    if "forward" in vars(ours):
        names["forward"] = _unless_exchanged(ours.forward, theirs, forward)
    quiet = () if "__init_subclass__" in vars(ours) else (_Unannounced,)
    return type(theirs.__name__, (*quiet, ours, theirs), names)


def _unless_exchanged(forward: Any, theirs: Any, stands_for: Any) -> Any:
    @functools.wraps(forward)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        now = theirs.forward
        return (forward if now is stands_for else now)(self, *args, **kwargs)

    return run


def forward_of(kind: Any) -> Any:
    """The forward that objects of a class run: of a derived one ours, unless the one under it is exchanged."""
    stands_for = getattr(kind, "_stands_for", None)
    if stands_for is None:
        return kind.forward
    ours, theirs, forward = stands_for
    return ours.forward if theirs.forward is forward else theirs.forward


def is_exchanged(kind: Any) -> bool:
    """Whether a class is a derived one that stands for a forward which is another one by now."""
    stands_for = getattr(kind, "_stands_for", None)
    return stands_for is not None and stands_for[1].forward is not stands_for[2]


def is_made(kind: type[nn.Module]) -> bool:
    """Whether a class is one of those that convert gives, or over one of those (as a parametrized module's is)."""
    return hasattr(kind, "_stands_for") or any(base.__module__.startswith("fastcnn.") for base in kind.__mro__)


def _new(ours: Any, theirs: Any, fingerprint: str) -> nn.Module:
    """An empty object of the derived class, for pickle and copy to fill."""
    same = _fingerprint(theirs.forward) == fingerprint
    kind = derived(ours, theirs) if same else _derived(ours, theirs, None)  # what it stood for is gone: theirs runs
    new: nn.Module = kind.__new__(kind)
    return new


def _fingerprint(function: Any) -> str:
    """What tells a function from another one in its place, in another process too."""
    return hashlib.sha256(repr(_described(function, ())).encode()).hexdigest()


def _described(value: Any, around: tuple[Any, ...]) -> Any:
    """Code, functions and constants as what has the same repr() in each process."""
    if any(value is outer for outer in around):
        return None
    around = (*around, value)
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
        inner = [value.__code__, *(cell for cell in cells if isinstance(cell, FunctionType))]
        return [_described(part, around) for part in inner]
    if isinstance(value, CodeType):
        constants = [_described(constant, around) for constant in value.co_consts]
        return (value.co_code, value.co_names, value.co_varnames, value.co_freevars, constants)
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    return repr(value)


def refusal(theirs: type[nn.Module]) -> str | None:
    """Why no class can be derived from `theirs`, if so."""
    for name in _SPECIAL:
        if getattr(theirs, name, None) is not getattr(nn.Module, name, None):
            return f"{theirs.__name__} defines {name}"
    return None
