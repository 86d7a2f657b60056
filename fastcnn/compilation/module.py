"""The module that compile and load return."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastcnn import _library
from fastcnn.compilation import container, pure_ops, spec
from fastcnn.compilation.build import build
from fastcnn.compilation.spec import Program

_TOLERANCE = 1e-2  # of an output's norm: rounding and Winograd's algorithm stay far below


def compile(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], *, dtype: torch.dtype = spec.DTYPE
) -> CompiledModule:
    """Freezes a network's weights for inference and returns a module that runs it in one call below Python.

    Batch norms become part of the convolutions' weights; bias, activations and residual sums part of the layers
    before them; a concat's parts are written where the result lies. All of it is NHWC, in memory planned ahead.
    Operators that a plan does not know run as torch's, between plans, and report() names them.

    Args:
        model: any module that torch.export can trace, of torch's layers or fastcnn's, in evaluation mode; its
            parameters float32 on the CPU. It is left as it is, and later changes to it change nothing here: see
            CompiledModule.refresh.
        example_inputs: Tensor[N, ...], or a tuple or list of them, one for each positional argument of forward. All
            sizes but the batch, and the dtypes, are the ones that the compiled module takes.
        dtype: what it computes in; torch.float32 alone so far.

    Returns:
        The compiled module.

    Raises:
        RuntimeError: the model is in training mode, is not float32 on the CPU, or writes to its buffers or inputs; or
            one image is a case of its own for it, for which one call of it is compared.
        TypeError: an example is no tensor with a batch, or dtype no torch.dtype.
        ValueError: the examples have different batches.
        NotImplementedError: another dtype; an output other than tensors in tuples, lists and dicts; an operator that
            reads strides.
        torch.export's own errors: forward cannot be traced, or works for one batch size only.

    Numerics: float32 throughout; batch norms are folded in float64 and rounded once. The result depends neither on the
    number of threads nor on the other images of the batch, as far as torch's operators do not.
    """
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"fastcnn.compile: expected dtype to be a torch.dtype, but got {dtype!r}")
    if dtype != spec.DTYPE:
        raise NotImplementedError(f"fastcnn.compile: expected dtype {spec.DTYPE}, the one supported, but got {dtype}")
    examples = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    return compile_checked(model, examples)


def compile_checked(model: nn.Module, examples: Sequence[Tensor], *, dynamic: bool = True) -> CompiledModule:
    """Builds a model and tries one image; arguments and errors as export.export's."""
    compiled = CompiledModule(build(model, examples, dynamic=dynamic))
    if dynamic:
        _check_one_image(model, compiled, [example[:1].detach() for example in examples])
    return compiled


def _check_one_image(model: nn.Module, compiled: CompiledModule, images: Sequence[Tensor]) -> None:
    """Raises RuntimeError where one image is a case of its own for the model, which a trace of several hides."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            expected = pytree.tree_leaves(model(*images))
        except Exception:  # the model takes several images only
            return
        what = "fastcnn.compile: expected a model that treats one image as it treats several, but for one "
        try:
            results = pytree.tree_leaves(compiled(*images))
        except Exception as error:
            raise RuntimeError(f"{what}a size changes ({error}); does forward squeeze its batch?") from error
    is_random = any(op not in pure_ops.PURE_OPS for op in compiled.report().aten)
    for want, got in zip(expected, results, strict=True):
        if not isinstance(want, Tensor):  # None, or the batch's size
            continue
        if want.shape != got.shape:
            raise RuntimeError(
                f"{what}it returns size {list(want.shape)}, and compiled {list(got.shape)}; does forward squeeze its "
                "batch?"
            )
        distance = (want.double() - got.double()).norm() / want.double().norm()
        if want.is_floating_point() and not is_random and distance > _TOLERANCE:  # not where it is no number
            raise RuntimeError(f"{what}it returns other values; does forward ask for the size of its batch?")


def load(path: str | PathLike[str]) -> CompiledModule:
    """Reads what CompiledModule.save wrote.

    A file runs nothing but this package's kernels and the pure operators of pure_ops.PURE_OPS.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
        RuntimeError: it is no such file, was cut short or changed, or holds what cannot run here.
    """
    path = Path(path)
    try:
        program = container.read(path)
        return CompiledModule(program)
    except (ValueError, RuntimeError) as error:
        raise RuntimeError(f"fastcnn.load: cannot load {str(path)!r}: {error}") from error


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


@dataclass(frozen=True)
class _Segment:
    run: Callable[[list[Any]], Sequence[Any]]  # of all slots
    outputs: list[int]
    last_reads: list[int]  # slots that nothing reads any more
    describe: Callable[[], list[str]]
    plan: Any = None  # torch.classes.fastcnn.Plan, or None for an operator of torch's


class CompiledModule(nn.Module):
    """A network for inference, its weights frozen; compile and load make it.

    It holds no parameters, stays in evaluation mode whatever train() says, and several threads may call it at once.
    copy.deepcopy and pickle keep the network; a copy shares the weights, which never change in place.
    """

    def __init__(self, program: Program) -> None:
        """Prepares a program that build made or validate has checked; RuntimeError where a plan is wrong."""
        super().__init__()
        self.training = False
        self._install(program)

    def _install(self, program: Program) -> None:
        executable = _Executable(program)
        self._executable = executable  # one assignment: calls that run meanwhile keep what they began with

    def forward(self, *inputs: Tensor) -> Any:
        """Runs the network on Tensor[N, ...] for each input, in any layout; what comes back is what the model returned.

        Raises:
            TypeError: another number of inputs, or something that is no tensor.
            RuntimeError: another size than the example's (the batch apart), dtype or device; an input that requires a
                gradient while gradients are on.
        """
        return self._executable(inputs)

    def refresh(self, model: nn.Module) -> None:
        """Takes the weights of `model`, the one that was compiled or one of the same structure, as they are now.

        Raises:
            RuntimeError: its structure is another; or compile's errors.
        """
        old = self._executable.program
        batch = old.document["batch"] or 2
        examples = [
            torch.zeros((batch, *given["shape"]), dtype=spec.dtype_of(given["dtype"]))
            for given in old.document["inputs"]
        ]
        program = build(model, examples, dynamic=old.document["batch"] is None)
        same = program.document == old.document and [c.shape for c in program.constants] == [
            c.shape for c in old.constants
        ]
        if not same:
            raise RuntimeError("fastcnn.compile: refresh expected a model of the structure that was compiled")
        self._install(program)

    def report(self) -> Report:
        """What it runs, and how much memory that takes."""
        return self._executable.report()

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a file that load reads; an existing one is exchanged in one step, or kept if writing fails.

        Args:
            path: the file.

        Raises:
            OSError: it cannot be written.
            RuntimeError: the network needs an operator that files may not name.
        """
        for segment in self._executable.program.document["segments"]:
            if "op" in segment and segment["op"] not in pure_ops.PURE_OPS:
                raise RuntimeError(f"fastcnn.compile: files may not name the operator {segment['op']}, which it runs")
        container.write(Path(path), self._executable.program)

    def train(self, mode: bool = True) -> CompiledModule:
        """Does nothing: frozen weights have no training mode."""
        return self

    def extra_repr(self) -> str:
        """What repr() shows between the brackets."""
        inputs = self._executable.program.document["inputs"]
        return ", ".join(f"{given['name']}: {given['dtype']}{_sizes(given['shape'])}" for given in inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModule:
        """Another module with the same program and weights."""
        return CompiledModule(self._executable.program)

    def __reduce__(self) -> Any:
        """For pickle: the program's parts."""
        program = self._executable.program
        return _restore, (program.document, program.constants)


def _restore(document: dict[str, Any], constants: list[Tensor]) -> CompiledModule:
    return CompiledModule(Program(document, constants))


def _sizes(shape: Sequence[int]) -> str:
    return f"[{', '.join(['N', *map(str, shape)])}]"


class _Executable:
    """A program that is ready to run."""

    def __init__(self, program: Program) -> None:
        self.program = program
        document = program.document
        self.expected = [
            (given["name"], torch.Size(given["shape"]), spec.dtype_of(given["dtype"])) for given in document["inputs"]
        ]
        self.batch = document["batch"]
        self.segments: list[_Segment] = []
        last = {slot: len(document["segments"]) for slot in document["outputs"]}
        for index in reversed(range(len(document["segments"]))):
            segment = document["segments"][index]
            reads = segment["inputs"] if "plan" in segment else _slots([segment["args"], *segment["kwargs"].values()])
            free = [
                slot for slot in [*dict.fromkeys(reads), *segment["outputs"]] if last.setdefault(slot, index) == index
            ]
            self.segments.append(self._prepare(segment, free))
        self.segments.reverse()
        self.plan = self._only_plan()

    def _only_plan(self) -> Callable[[Sequence[Tensor]], Sequence[Tensor]] | None:
        """What runs the one plan that is all there is, from all inputs to the outputs; it checks its inputs itself."""
        document = self.program.document
        segments = document["segments"]
        if len(segments) != 1 or "plan" not in segments[0] or document["batch"] is not None:
            return None
        if segments[0]["inputs"] != list(range(len(self.expected))) or segments[0]["outputs"] != document["outputs"]:
            return None
        run: Callable[[Sequence[Tensor]], Sequence[Tensor]] = self.segments[0].plan.run
        return run

    def _prepare(self, segment: dict[str, Any], free: list[int]) -> _Segment:
        outputs = segment["outputs"]
        if "plan" in segment:
            given = segment["plan"]
            constants = [self.program.constants[index] for index in given["constants"]]
            plan = _library.plan(given["values"], given["steps"], constants, given["arena"])
            inputs = segment["inputs"]
            return _Segment(lambda slots: plan.run([slots[i] for i in inputs]), outputs, free, plan.describe, plan)
        name, many = segment["op"], segment["many"]
        op, constants = pure_ops.find(name), self.program.constants

        def run(slots: list[Any]) -> Sequence[Any]:
            args = spec.decode(segment["args"], slots.__getitem__, constants)
            kwargs = {k: spec.decode(v, slots.__getitem__, constants) for k, v in segment["kwargs"].items()}
            result = op(*args, **kwargs)
            return result if many else [result]

        return _Segment(run, outputs, free, lambda: [name])

    def __call__(self, inputs: Sequence[Any]) -> Any:
        structure = self.program.document["structure"]
        if self.plan is not None:
            try:
                results = self.plan(inputs)
            except Exception:
                self._check(inputs)  # in the words of this module
                raise
            return results[0] if structure == 0 else _build_structure(structure, results)
        self._check(inputs)
        slots: list[Any] = [*inputs, *[None] * (self.program.document["slots"] - len(inputs))]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for segment in self.segments:
                for slot, value in zip(segment.outputs, segment.run(slots), strict=True):
                    slots[slot] = value
                for slot in segment.last_reads:
                    slots[slot] = None
        outputs = [slots[slot] for slot in self.program.document["outputs"]]
        return _build_structure(structure, outputs)

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
                    f"fastcnn.compile: expected {name} of size {_sizes(shape)} as compiled, but got size "
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
        program = self.program
        aten: dict[str, int] = {}
        arena = 0
        for segment in program.document["segments"]:
            if "plan" in segment:
                arena += segment["plan"]["arena"]
            else:
                aten[segment["op"]] = aten.get(segment["op"], 0) + 1
        return Report(
            steps=tuple(line for segment in self.segments for line in segment.describe()),
            aten=aten,
            constant_bytes=sum(c.numel() * c.element_size() for c in program.constants),
            image_bytes=4 * arena,
        )


def _slots(arguments: Any) -> list[int]:
    """The slots that an op's arguments name."""
    if isinstance(arguments, list):
        return [slot for item in arguments for slot in _slots(item)]
    if isinstance(arguments, dict):
        if set(arguments) == {"slot"}:
            return [arguments["slot"]]
        return [slot for item in arguments.values() for slot in _slots(item)]
    return []


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
