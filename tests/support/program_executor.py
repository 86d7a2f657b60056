"""Runs a program of fastcnn.compilation.spec from Python: plans by plan_executor, operators as torch.ops has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from plan_executor import PlanExecutor
from torch import Tensor

from fastcnn.compilation import pure_ops
from fastcnn.compilation.spec import Program


class ProgramExecutor:
    """torch.classes.fastcnn.Program, slowly."""

    def __init__(self, program: Program) -> None:
        self.document, self.constants = program.document, program.constants
        self.plans = [self._plan(segment["plan"]) for segment in self.document["segments"] if "plan" in segment]

    def _plan(self, plan: dict[str, Any]) -> PlanExecutor:
        constants = [self.constants[index] for index in plan["constants"]]
        return PlanExecutor(plan["values"], plan["steps"], constants, plan["arena"])

    def describe(self) -> list[str]:
        plans = iter(self.plans)
        segments = self.document["segments"]
        return [line for s in segments for line in (next(plans).describe() if "plan" in s else [s["op"]])]

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        self._check(inputs)
        slots: list[Any] = [*inputs, *[None] * (self.document["slots"] - len(inputs))]
        plans = iter(self.plans)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for segment in self.document["segments"]:
                if "plan" in segment:
                    results = next(plans).run([slots[slot] for slot in segment["inputs"]])
                else:
                    arguments = self._decode(segment["args"], slots)
                    keywords = {key: self._decode(value, slots) for key, value in segment["kwargs"].items()}
                    result = pure_ops.find(segment["op"])(*arguments, **keywords)
                    results = result if segment["many"] else [result]
                for slot, value in zip(segment["outputs"], results, strict=True):
                    slots[slot] = value
        return [slots[slot] for slot in self.document["outputs"]]

    def _check(self, inputs: Sequence[Any]) -> None:
        assert len(inputs) == len(self.document["inputs"])
        for given, tensor in zip(self.document["inputs"], inputs, strict=True):
            assert isinstance(tensor, Tensor) and tensor.is_cpu and list(tensor.shape[1:]) == given["shape"]
            assert tensor.dim() > 0 and tensor.shape[0] == (self.document["batch"] or inputs[0].shape[0])
            assert tensor.dtype == getattr(torch, given["dtype"])
            assert not (tensor.requires_grad and torch.is_grad_enabled())

    def _decode(self, argument: Any, slots: list[Any]) -> Any:
        if isinstance(argument, list):
            return [self._decode(item, slots) for item in argument]
        if not isinstance(argument, dict):
            return argument
        ((key, value),) = argument.items()
        if key in ("slot", "constant"):
            return (slots if key == "slot" else self.constants)[value]
        return torch.device(value) if key == "device" else getattr(torch, value)
