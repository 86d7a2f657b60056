"""A compiled network as plain data: what programs run, what files hold, and the check that it is well formed.

A program is a document (dicts, lists, strings and numbers, as JSON has them) and a list of constants:

  dtype:     what plans compute in and their values are: "float32"
  inputs:    [{"name", "shape": sizes without the batch, "dtype"}]
  batch:     the one batch size that it takes, or null for any
  slots:     how many values pass between the segments; the first ones are the inputs
  segments:  run in order, each either a plan or one of torch's ops
  outputs:   slots
  structure: what is returned: a number of `outputs`, null, {"tuple": [...]}, {"list": [...]}, {"dict": {...}} or
             {"OrderedDict": {...}}

A plan is {"plan": {"values", "steps", "constants", "arena"}, "inputs": slots, "outputs": slots}.
  A value is [storage, index or offset, height, width, channels, pitch, first channel]; element (n, h, w, c) lies at
  base + ((n * height + h) * width + w) * pitch + first channel + c. Storage 0 is the arena, base = batch * offset; 1 is
  the plan's input number index, a tensor of any strides, pitch 0; 2 its output number index, allocated channels_last
  with `pitch` channels. Inputs and outputs of the form [N, C] have height = width = 0. `arena` is the
  arena's floats an image.
  A step is [opcode, ...], constants and values by number, -1 for none:
    0 conv2d: in, out, weight, bias, residual, activation, stride (2), padding (2), dilation (2), groups, pooled (the
      maxima of windows of 2 x 2 of out, rounded down; of out, in the arena, only the room is then used, or -1)
    1 max_pool2d: in, out, kernel (2), stride (2), padding (2), dilation (2), ceil_mode
    2 avg_pool2d: in, out, kernel (2), stride (2), padding (2), ceil_mode, count_include_pad, divisor (0: none)
    3 adaptive_avg_pool2d: in, out
    4 linear: in (read in the order h, w, c), out, weight, bias, activation
    5 scale_shift: in, out, scale, shift, activation
    6 add: a, b, out, activation
    7 activation: in, out, activation
    8 copy: in, out
    9 scale_images: in, factors (one pixel), out
    10 inverted_residual: in, out, residual; weight, bias, activation of a 1x1 convolution; those of a depthwise one,
      its stride (2), padding (2) and dilation (2); those of another 1x1 one, to whose result the residual is added. Of
      the 1x1 ones one may be missing: -1, -1 and no activation
  An activation is a place in ACTIVATIONS; it comes after bias and residual.

An op of torch's is {"op": name, "args", "kwargs", "many": whether it returns a list, "outputs": slots}; in its
arguments {"slot": n}, {"constant": n} and {"dtype" | "memory_format" | "layout" | "device": name} stand for what they
say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastcnn.compilation.pure_ops import is_random, resolve, updates_statistics

ARENA, INPUT, OUTPUT = 0, 1, 2
ACTIVATIONS = ("none", "relu", "sigmoid", "relu6", "hard_sigmoid", "hard_swish", "silu")
_STEPS = (  # name, length of the record
    ("conv2d", 15),
    ("max_pool2d", 12),
    ("avg_pool2d", 12),
    ("adaptive_avg_pool2d", 3),
    ("linear", 6),
    ("scale_shift", 6),
    ("add", 5),
    ("activation", 4),
    ("copy", 3),
    ("scale_images", 4),
    ("inverted_residual", 19),
)
OPCODES = {name: code for code, (name, _) in enumerate(_STEPS)}

DTYPE = torch.float32  # what plans compute in
MOST_SIDE = 2**20  # height and width of a plan's values, as csrc/plan/spec.h has it

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool)
_INT_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last, torch.preserve_format)


def _by_name(*values: Any) -> dict[str, Any]:
    return {str(value).removeprefix("torch."): value for value in values}


_NAMED: dict[str, dict[str, Any]] = {  # by key: the names that it may have, and what they stand for
    "dtype": _by_name(*_DTYPES, *_INT_DTYPES),
    "memory_format": _by_name(*_MEMORY_FORMATS),
    "layout": _by_name(torch.strided),
    "device": _by_name(torch.device("cpu")),
}


@dataclass(frozen=True)
class Program:
    """A document and its constants; see the top of this file."""

    document: dict[str, Any]
    constants: list[Tensor]


def encode_leaf(leaf: Any) -> Any:
    """A leaf of an op's arguments in the document's form; slots and constants are the caller's."""
    if leaf is None or isinstance(leaf, (bool, int, float, str)):
        return leaf
    for key, names in _NAMED.items():
        for name, value in names.items():
            if type(leaf) is type(value) and leaf == value:
                return {key: name}
    raise NotImplementedError(f"fastcnn.compile: the argument {leaf!r} of an operator")


def dtype_of(name: str) -> torch.dtype:
    """The dtype called "float32", ..."""
    dtype: torch.dtype = _NAMED["dtype"][name]
    return dtype


def name_of(dtype: torch.dtype) -> str:
    """What dtype_of takes."""
    return str(dtype).removeprefix("torch.")


def is_known(dtype: torch.dtype) -> bool:
    """Whether documents have a name for a dtype."""
    return dtype in _NAMED["dtype"].values()


def validate(program: Program) -> None:
    """Raises ValueError where a program is not of the form above, whoever made it.

    The numbers inside a plan are left to torch.classes.fastcnn.Plan, which checks all of them when it is made.
    """
    try:
        _Check(program).run()
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"it is not formed as a program is: {type(error).__name__}: {error}") from error


class _Check:
    def __init__(self, program: Program) -> None:
        self.document, self.constants = program.document, program.constants
        self.filled: set[int] = set()

    def run(self) -> None:
        document = self.document
        if document["dtype"] != name_of(DTYPE):
            raise ValueError(f"it computes in {document['dtype']}, and this version in {name_of(DTYPE)} alone")
        _expect(set(document) == {"dtype", "inputs", "batch", "slots", "segments", "outputs", "structure"}, "its keys")
        _expect(document["batch"] is None or _is_count(document["batch"]), "its batch")
        _expect(_is_count(document["slots"]), "its number of slots")
        _expect(isinstance(document["inputs"], list) and len(document["inputs"]) > 0, "its inputs")
        for given in document["inputs"]:
            _expect(set(given) == {"name", "shape", "dtype"} and isinstance(given["name"], str), "an input")
            _expect(_are_counts(given["shape"]) and given["dtype"] in _NAMED["dtype"], "an input's shape or dtype")
        self._fill(list(range(len(document["inputs"]))))
        _expect(isinstance(document["segments"], list), "its segments")
        for segment in document["segments"]:
            self._plan(segment) if "plan" in segment else self._op(segment)
        _expect(len(self.filled) == document["slots"], "its number of slots")
        self._read(document["outputs"])
        _structure_numbers(document["structure"], len(document["outputs"]), depth=0)

    def _fill(self, slots: Any) -> None:
        _expect(_are_counts(slots) and len(set(slots)) == len(slots), "slots")
        _expect(all(s < self.document["slots"] and s not in self.filled for s in slots), "a slot that is filled")
        self.filled.update(slots)

    def _read(self, slots: Any) -> None:
        _expect(_are_counts(slots) and self.filled.issuperset(slots), "a slot that is read")

    def _plan(self, segment: dict[str, Any]) -> None:
        _expect(set(segment) == {"plan", "inputs", "outputs"}, "a plan's keys")
        plan = segment["plan"]
        _expect(set(plan) == {"values", "steps", "constants", "arena"}, "a plan's keys")
        self._read(segment["inputs"])
        self._fill(segment["outputs"])
        _expect(_is_int(plan["arena"]) and plan["arena"] >= 0, "a plan's arena")
        for record in plan["values"]:
            _expect(isinstance(record, list) and len(record) == 7 and all(map(_is_int, record)), "a plan's value")
        for storage, slots in ((INPUT, segment["inputs"]), (OUTPUT, segment["outputs"])):
            numbers = {record[1] for record in plan["values"] if record[0] == storage}
            _expect(numbers == set(range(len(slots))), "a plan's inputs or outputs")
        for step in plan["steps"]:
            _expect(isinstance(step, list) and len(step) > 0 and all(map(_is_int, step)), "a plan's step")
            _expect(0 <= step[0] < len(_STEPS) and len(step) == _STEPS[step[0]][1], "a plan's step")
        _expect(_are_counts(plan["constants"]), "a plan's constants")
        for index in plan["constants"]:
            _expect(index < len(self.constants) and self.constants[index].dtype == torch.float32, "a plan's constant")

    def _op(self, segment: dict[str, Any]) -> None:
        _expect(set(segment) == {"op", "args", "kwargs", "many", "outputs"}, "an operator's keys")
        resolve(segment["op"])
        _expect(isinstance(segment["args"], list) and isinstance(segment["kwargs"], dict), "an operator's arguments")
        _expect(not updates_statistics(segment["op"], segment["args"]), "an operator that writes")
        _expect(not is_random(segment["op"], segment["args"], segment["kwargs"]), "an operator that draws numbers")
        self._argument(segment["args"], 0)
        self._argument(list(segment["kwargs"].values()), 0)
        _expect(isinstance(segment["many"], bool), "an operator's results")
        _expect(segment["many"] or len(segment["outputs"]) == 1, "an operator's results")
        self._fill(segment["outputs"])

    def _argument(self, argument: Any, depth: int) -> None:
        _expect(depth < 8, "an operator's arguments")
        if isinstance(argument, list):
            for item in argument:
                self._argument(item, depth + 1)
        elif isinstance(argument, dict):
            ((key, value),) = argument.items()
            if key == "slot":
                self._read([value])
            elif key == "constant":
                _expect(_is_count(value) and value < len(self.constants), "a constant")
            else:
                _expect(value in _NAMED[key], f"a {key}")
        else:
            is_number = isinstance(argument, (bool, float)) or _is_int(argument)
            _expect(argument is None or is_number or isinstance(argument, str), "an operator's arguments")


def _structure_numbers(structure: Any, count: int, depth: int) -> None:
    _expect(depth < 64, "what it returns")
    if isinstance(structure, dict):
        ((kind, children),) = structure.items()
        _expect(kind in ("tuple", "list", "dict", "OrderedDict"), "what it returns")
        named = kind in ("dict", "OrderedDict")
        _expect(isinstance(children, dict if named else list), "what it returns")
        for child in children.values() if named else children:
            _structure_numbers(child, count, depth + 1)
    else:
        _expect(structure is None or (_is_count(structure) and structure < count), "what it returns")


def _is_int(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_count(value: Any) -> bool:
    return _is_int(value) and value >= 0


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_count, values))


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"it is not formed as a program is: {what}")
