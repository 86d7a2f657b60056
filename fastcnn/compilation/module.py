"""The module that compile and load return."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastcnn.compilation import container, pure_ops, spec
from fastcnn.compilation.build import build
from fastcnn.compilation.executable import Executable, Report, sizes_text
from fastcnn.compilation.spec import Program

_TOLERANCE = 1e-2  # of an output's norm: rounding and Winograd's algorithm stay far below


def compile(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], *, dtype: torch.dtype = spec.DTYPE
) -> CompiledModule:
    """Freezes a network's weights for inference and returns a module that runs it in one call below Python.

    Batch norms become part of the convolutions' weights; bias, activations and residual sums part of the layers
    before them; a concat's parts are written where the result lies. All of it is NHWC, in memory planned ahead.
    Operators that a plan does not know run as torch's, in the same call, and report() names them.

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

    Numerics: float32 throughout, under torch.autocast too; batch norms are folded in float64 and rounded once. The
    result depends neither on the number of threads nor on the other images of the batch, as far as torch's operators do
    not.
    """
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"fastcnn.compile: expected dtype to be a torch.dtype, but got {dtype!r}")
    if dtype != spec.DTYPE:
        raise NotImplementedError(f"fastcnn.compile: expected dtype {spec.DTYPE}, the one supported, but got {dtype}")
    examples = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    return compile_checked(model, examples)


def compile_checked(model: nn.Module, examples: Sequence[Tensor], *, dynamic: bool = True) -> CompiledModule:
    """Builds a model and tries one image; arguments and errors as export.export's."""
    with torch.autocast("cpu", enabled=False):
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
    operators = [segment for segment in compiled._executable.program.document["segments"] if "op" in segment]
    is_random = any(pure_ops.is_random(one["op"], one["args"], one["kwargs"]) for one in operators)
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
        executable = Executable(program)
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
        with torch.autocast("cpu", enabled=False):
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
            if "op" not in segment:
                continue
            is_random = pure_ops.is_random(segment["op"], segment["args"], segment["kwargs"])
            if is_random or segment["op"] not in pure_ops.PURE_OPS:
                raise RuntimeError(f"fastcnn.compile: files may not name the operator {segment['op']}, which it runs")
        container.write(Path(path), self._executable.program)

    def train(self, mode: bool = True) -> CompiledModule:
        """Does nothing: frozen weights have no training mode."""
        return self

    def extra_repr(self) -> str:
        """What repr() shows between the brackets."""
        inputs = self._executable.program.document["inputs"]
        return ", ".join(f"{given['name']}: {given['dtype']}{sizes_text(given['shape'])}" for given in inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModule:
        """Another module with the same program and weights."""
        return CompiledModule(self._executable.program)

    def __reduce__(self) -> Any:
        """For pickle: the program's parts."""
        program = self._executable.program
        return _restore, (program.document, program.constants)


def _restore(document: dict[str, Any], constants: list[Tensor]) -> CompiledModule:
    return CompiledModule(Program(document, constants))
