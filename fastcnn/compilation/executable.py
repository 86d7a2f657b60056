"""A program made ready: one call below Python runs all of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastcnn import _library
from fastcnn.compilation import pure_ops, spec
from fastcnn.compilation.spec import Program


@dataclass(frozen=True)
class Report:
    """What a compiled module consists of.

    Attributes:
        steps: one line a step, in order: the kernel, or the operator of torch's.
        aten: how often each operator of torch's runs in a call.
        constant_bytes: the weights; what the kernels pack of them comes on top.
        image_bytes: memory for the values between the steps, for each image of the batch.
    """

    steps: tuple[str, ...]
    aten: dict[str, int]
    constant_bytes: int
    image_bytes: int

    def __str__(self) -> str:
        """As a text of several lines."""
        others = ", ".join(f"{name} x {count}" for name, count in self.aten.items()) or "none"
        return "\n".join(
            [
                *self.steps,
                f"operators of torch: {others}",
                f"memory: {self.constant_bytes} bytes of weights + batch x {self.image_bytes} bytes",
            ]
        )


class Executable:
    """Runs a program that build made or validate has checked."""

    def __init__(self, program: Program) -> None:
        """Prepares it; RuntimeError or ValueError where a plan or an operator's arguments are wrong."""
        self.program = program
        document = program.document
        self.expected = [
            (given["name"], torch.Size(given["shape"]), spec.dtype_of(given["dtype"])) for given in document["inputs"]
        ]
        self.batch = document["batch"]
        self.structure = document["structure"]
        self.code = prepare(program)
        self.run = self.code.run  # looking it up takes a microsecond

    def __call__(self, inputs: Sequence[Any]) -> Any:
        """What the model returns."""
        try:
            results = self.run(inputs)
        except Exception:
            self._check(inputs)  # in the words of this module
            raise
        return results[0] if self.structure == 0 else _build_structure(self.structure, results)

    def _check(self, inputs: Sequence[Any]) -> None:
        if len(inputs) != len(self.expected):
            raise TypeError(
                f"fastcnn.compile: the compiled model takes {len(self.expected)} positional arguments "
                f"({', '.join(name for name, _, _ in self.expected)}) but {len(inputs)} were given"
            )
        for given, (name, shape, dtype) in zip(inputs, self.expected, strict=True):
            if not isinstance(given, Tensor):
                raise TypeError(f"fastcnn.compile: argument '{name}' must be Tensor, not {type(given).__name__}")
            if given.shape[1:] != shape or given.dim() == 0:
                raise RuntimeError(
                    f"fastcnn.compile: expected {name} of size {sizes_text(shape)} as compiled, but got size "
                    f"{list(given.shape)}; compile the model with an example of that size"
                )
            if given.dtype != dtype:
                raise RuntimeError(f"fastcnn.compile: expected {name} of scalar type {dtype} but found {given.dtype}")
            if not given.is_cpu:
                raise RuntimeError(f"fastcnn.compile: expected all tensors on the CPU, but {name} is on {given.device}")
            if given.shape[0] != (self.batch or inputs[0].shape[0]):
                raise RuntimeError(
                    f"fastcnn.compile: expected {name} of batch {self.batch or inputs[0].shape[0]}, but got size "
                    f"{list(given.shape)}"
                )
            if given.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(
                    f"fastcnn.compile: a compiled model has no gradients, but {name} requires grad; call it under "
                    "torch.no_grad() or torch.inference_mode(), or pass a detached tensor"
                )

    def report(self) -> Report:
        """What it runs."""
        aten: dict[str, int] = {}
        arena = 0
        for segment in self.program.document["segments"]:
            if "plan" in segment:
                arena += segment["plan"]["arena"]
            else:
                aten[segment["op"]] = aten.get(segment["op"], 0) + 1
        return Report(
            steps=tuple(self.code.describe()),
            aten=aten,
            constant_bytes=sum(c.numel() * c.element_size() for c in self.program.constants),
            image_bytes=4 * arena,
        )


def prepare(program: Program) -> Any:
    """What runs a program: run(list of inputs) gives the list of outputs, and describe() a line a step."""
    return _Encoder(program).encode()


# How torch.classes.fastcnn.Program takes arguments: see csrc/plan/operator.h.
_NONE, _ABSENT, _BOOL, _INT, _NUMBER, _TEXT, _NAMED, _SLOT, _CONSTANT, _LIST = range(10)
_PLAN, _OPERATOR = range(2)


class _Encoder:
    """Turns a document into numbers, and what these name by their place."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.texts: dict[str, int] = {}
        self.numbers: list[float] = []

    def encode(self) -> Any:
        document, constants = self.program.document, self.program.constants
        inputs = [(given["name"], given["shape"], spec.dtype_of(given["dtype"])) for given in document["inputs"]]
        plans: list[Any] = []
        records: list[list[int]] = []
        for segment in document["segments"]:
            if "plan" in segment:
                plan = segment["plan"]
                weights = [constants[index] for index in plan["constants"]]
                records.append([_PLAN, len(plans), *segment["inputs"], *segment["outputs"]])
                plans.append(_library.plan(plan["values"], plan["steps"], weights, plan["arena"]))
            else:
                records.append(self._operator(segment))
        return _library.program(
            inputs=inputs,
            batch=document["batch"] or 0,
            slots=document["slots"],
            records=records,
            plans=plans,
            texts=list(self.texts),
            numbers=self.numbers,
            constants=constants,
            outputs=document["outputs"],
        )

    def _operator(self, segment: dict[str, Any]) -> list[int]:
        name, outputs = segment["op"], segment["outputs"]
        record = [_OPERATOR, self._text(name), int(segment["many"]), len(outputs), *outputs]
        for argument in pure_ops.bind(name, segment["args"], segment["kwargs"]):
            record += [_ABSENT] if argument is pure_ops.ABSENT else self._argument(argument)
        return record

    def _argument(self, argument: Any) -> list[int]:
        if argument is None:
            return [_NONE]
        if isinstance(argument, bool):
            return [_BOOL, int(argument)]
        if isinstance(argument, int):
            return [_INT, argument]
        if isinstance(argument, float):
            self.numbers.append(argument)
            return [_NUMBER, len(self.numbers) - 1]
        if isinstance(argument, str):
            return [_TEXT, self._text(argument)]
        if isinstance(argument, list):
            return [_LIST, len(argument), *(number for item in argument for number in self._argument(item))]
        ((key, value),) = argument.items()
        if key in ("slot", "constant"):
            return [_SLOT if key == "slot" else _CONSTANT, value]
        return [_NAMED, self._text(value)]

    def _text(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))


def sizes_text(shape: Sequence[int]) -> str:
    """[N, ...], as messages have it."""
    return f"[{', '.join(['N', *map(str, shape)])}]"


def _build_structure(structure: Any, outputs: Sequence[Any]) -> Any:
    if structure is None:
        return None
    if not isinstance(structure, dict):
        return outputs[structure]
    ((kind, children),) = structure.items()
    if isinstance(children, dict):
        named = {key: _build_structure(child, outputs) for key, child in children.items()}
        return OrderedDict(named) if kind == "OrderedDict" else named
    built = [_build_structure(child, outputs) for child in children]
    return built if kind == "list" else tuple(built)
