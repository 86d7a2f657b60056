"""Notes what a forward reads and calls while it is traced: what its trace depends on, or what no trace can hold."""

from __future__ import annotations

import contextlib
import copy
import dis
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType
from typing import Any

import torch

from fastcnn._random import RandomState
from fastcnn.conversion.recipe import Guard

# Modules whose functions mean that the forward does more than compute from its arguments.
_FORBIDDEN_MODULES = (
    *("torch.utils.checkpoint", "torch.autograd.grad_mode", "torch.autograd.graph", "torch.amp", "torch.random"),
    *("torch.cuda", "random", "numpy.random"),
)
_FORBIDDEN_CALLS = {
    *(print, open, input, torch.is_grad_enabled, torch.is_inference_mode_enabled),
    *(torch._C._set_grad_enabled, torch.is_autocast_enabled, torch.set_autocast_enabled),
}
# What tells a stand-in from what it stands for, and what reads around a probe, without their noticing.
_FORBIDDEN_BUILTINS = ("type", "callable", "vars")
_FORBIDDEN_ATTRIBUTES = ("__class__", "__dict__")

DATA = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.memory_format)
VALUES = (*DATA, type, FunctionType, BuiltinFunctionType)


@dataclass
class Notes:
    """What the forward read while it was traced."""

    guards: dict[tuple[tuple[str, ...], str], Guard] = field(default_factory=dict)
    training: set[tuple[str, ...]] = field(default_factory=set)  # the modules whose training flag was read
    asked: set[str] = field(default_factory=set)  # the arguments whose type was asked for
    asking: bool = False  # whether the forward is in hasattr or getattr
    refusal: str | None = None
    on: bool = False

    def refuse(self, reason: str) -> None:
        """Keeps the first reason."""
        self.refusal = self.refusal or reason


def is_value(value: Any, types: tuple[type, ...] = VALUES) -> bool:
    """Whether a value is of these types, or a container of such."""
    if isinstance(value, (tuple, list)):
        return all(is_value(v, types) for v in value)
    if isinstance(value, dict):
        return all(is_value(v, types) for v in (*value.keys(), *value.values()))
    return isinstance(value, types)


def module_of(frame: FrameType | None) -> str:
    """The name of the Python module whose code a frame runs."""
    return "" if frame is None else str(frame.f_globals.get("__name__", ""))


@contextlib.contextmanager
def watched(notes: Notes) -> Iterator[None]:
    """Notes what functions read of their modules and call that a graph cannot hold, and puts the random state back."""
    drawn = RandomState()

    def watch(frame: FrameType, event: str, called: Any) -> None:
        if not notes.on:
            return
        if event == "c_call" and _is_forbidden(called):
            notes.refuse(f"calls {called.__name__}")
        elif event == "call":
            name = module_of(frame)
            if name.startswith(_FORBIDDEN_MODULES) and not module_of(frame.f_back).startswith("torch.fx"):
                notes.refuse(f"calls {name}.{frame.f_code.co_name}")
            elif _is_users(name):
                _look_at(notes, frame)
        elif called is hasattr or called is getattr:
            notes.asking = event == "c_call" and _is_users(module_of(frame))

    previous = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(previous)
        if not drawn.is_current():
            notes.refuse("draws random numbers")
            drawn.restore()


@functools.cache
def _is_users(module: str) -> bool:
    """Whether a Python module's functions belong to a forward, and not to Python, to torch or to the tracing."""
    top = module.partition(".")[0]
    return top != "torch" and top not in sys.stdlib_module_names and not module.startswith("fastcnn.conversion.")


def _is_forbidden(called: Any) -> bool:
    if type(getattr(called, "__self__", None)).__module__.startswith("numpy.random"):
        return True
    try:
        return called in _FORBIDDEN_CALLS
    except TypeError:  # unhashable: a method of such an object
        return False


def _look_at(notes: Notes, frame: FrameType) -> None:
    """Notes the plain values that a function reads of its module, and refuses one that may look behind the tracing."""
    names, namespace, module = _globals_of(frame.f_code), frame.f_globals, module_of(frame)
    for name in (*names, *frame.f_code.co_names):
        builtin = name in _FORBIDDEN_BUILTINS and name in names and name not in namespace
        if builtin or name in _FORBIDDEN_ATTRIBUTES:
            notes.refuse(f"names {name}")
    for name in names:
        if name not in namespace or not is_value(namespace[name], DATA):
            continue
        guard = Guard((module,), name, "global", copy.deepcopy(namespace[name]))
        if getattr(guard.namespace, "__dict__", None) is not namespace:
            notes.refuse(f"reads {name}, a global of no module")
        notes.guards.setdefault(((module,), f"global {name}"), guard)


@functools.cache
def _globals_of(code: CodeType) -> tuple[str, ...]:
    """The global and built-in names that a function's code reads."""
    read = (i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return tuple(dict.fromkeys(read))
