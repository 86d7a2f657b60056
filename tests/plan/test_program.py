"""Whole programs: torch's operators beside plans in one call, and the checks of what they are made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiling import prepare, random
from program_executor import ProgramExecutor
from threads import run_in_threads
from torch import Tensor, nn
from torch.nn import functional as F

import fastcnn
from fastcnn import _library, backends
from fastcnn.compilation import executable, spec
from fastcnn.compilation.spec import Program

PLAN, OPERATOR = range(2)
NONE, ABSENT, BOOL, INT, NUMBER, TEXT, NAMED, SLOT, CONSTANT, LIST = range(10)


class Function(nn.Module):
    """Functions that no plan knows, of the input and a table."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.table = function, nn.Buffer(random(6, seed=3), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.table)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "number as a tensor": lambda x, t: x.abs().double() * 2,
    "integer as a tensor": lambda x, t: (x > 0).to(torch.int32) * 3,
    "batch as a tensor": lambda x, t: x * x.shape[0],
    "arithmetic of sizes": lambda x, t: (
        x.unsqueeze(1).expand(-1, 2, -1, -1, -1).reshape(x.shape[0] * 2, 5, 6, 6)[: (x.shape[0] * 2 + 1) // 2 - 1 + 1]
    ),
    "default arguments": lambda x, t: F.gelu(x),
    "text": lambda x, t: F.gelu(x, approximate="tanh"),
    "floats": lambda x, t: (F.leaky_relu(x, 0.3), F.elu(x, alpha=2)),
    "infinity": lambda x, t: x.clamp(-0.5, float("inf")),
    "dtype": lambda x, t: x.softmax(1, dtype=torch.float64),
    "list of integers": lambda x, t: F.pad(x, (1, 2, 0, 3), value=0.5),
    "list with none": lambda x, t: x[:, :, t.argsort()],
    "several results": lambda x, t: x.split([2, 3], 1),
    "one of several results": lambda x, t: x.max(1)[1],
    "list of tensors": lambda x, t: torch.stack([x, x * t, t.expand_as(x)], 1),
    "constants alone": lambda x, t: t.square() + 1,
    "booleans": lambda x, t: x.sum((1, 2), keepdim=True),
    "size returned": lambda x, t: (x.shape[0], x.cos()),
    "optional numbers": lambda x, t: x.clamp(max=0.25),
    "scaled": lambda x, t: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "layout": lambda x, t: x.exp().contiguous(memory_format=torch.channels_last),
    "number out of a tensor": lambda x, t: (x.cos() * t[0].item(), x.sin().clamp(max=t[0].item())),
    "attention": lambda x, t: F.scaled_dot_product_attention(x, x, x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators_of_torch_give_torchs_bits(name: str) -> None:
    model = Function(FUNCTIONS[name]).eval()
    compiled = fastcnn.compile(model, random(2, 5, 6, 6))
    assert compiled.report().aten
    for batch in (1, 3):
        x = random(batch, 5, 6, 6, seed=batch)
        leaves = torch.utils._pytree.tree_leaves
        for got, want in zip(leaves(compiled(x)), leaves(model(x)), strict=True):
            assert got == want if isinstance(want, int) else torch.equal(got, want)
            assert isinstance(want, int) or (got.dtype, got.stride()) == (want.dtype, want.stride())


class Mixed(nn.Module):
    """Plans before, between and after operators."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = F.gelu(torch.relu(self.norm(self.conv(x))))
        return {"y": y, "z": self.linear((y.softmax(1) * y.shape[0]).flatten(1))}


@pytest.fixture(scope="module")
def mixed() -> Any:
    torch.manual_seed(0)
    return fastcnn.compile(prepare(Mixed()), random(2, 3, 6, 6))


def test_plans_and_operators_take_turns(mixed: Any) -> None:
    program = mixed._executable.program
    x = random(3, 3, 6, 6)
    got = mixed(x)
    operators = ("aten.gelu.default", "aten.softmax.int", "aten.mul.Tensor")
    steps = [step.split()[0] for step in mixed.report().steps]
    assert steps == ["aten.sym_size.int", "conv2d", *operators, "linear"]
    for value, want in zip(got.values(), ProgramExecutor(program).run([x]), strict=True):
        torch.testing.assert_close(value.double(), want.double(), rtol=0, atol=2e-6)


def test_operators_see_neither_gradients_nor_autocast(mixed: Any) -> None:
    x = random(3, 3, 6, 6)
    expected = mixed(x)
    with torch.autocast("cpu"), torch.enable_grad():
        assert all(torch.equal(a, b) for a, b in zip(mixed(x).values(), expected.values(), strict=True))
        assert torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    assert not expected["y"].requires_grad


def test_operators_of_python_run_in_a_program() -> None:
    @torch.library.custom_op("fastcnn_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)
    model = Function(lambda x, t: torch.relu(torch.ops.fastcnn_test.twice(x))).eval()
    x = random(3, 3, 6, 6)
    assert torch.equal(fastcnn.compile(model, x)(x), model(x))


def test_operators_of_python_find_memory_as_they_would_in_the_model() -> None:
    """They may read it as it lies, which is by channels in a plan."""

    @torch.library.custom_op("fastcnn_test::first_of_memory", mutates_args=())
    def first_of_memory(x: Tensor) -> Tensor:
        return x.as_strided((len(x), 5), (x[0].numel(), 1)).clone()

    first_of_memory.register_fake(lambda x: x.new_empty(x.shape[0], 5))
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.conv(x)
            first = torch.ops.fastcnn_test.first_of_memory
            pairs = y.reshape(-1, 2, 2, 4, 4).permute(0, 2, 3, 4, 1).contiguous()
            return first(y), first(y.contiguous()), torch.view_as_complex(pairs).abs()

    x = random(3, 3, 6, 6)
    for got, wanted in zip(fastcnn.compile(Model().eval(), x)(x), Model()(x), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        (random(2, 3, 6, 7), RuntimeError, r"size \[N, 3, 6, 6\].*got size \[2, 3, 6, 7\]"),
        (random(3, 6, 6), RuntimeError, r"size \[N, 3, 6, 6\].*got size \[3, 6, 6\]"),
        (torch.tensor(1.0), RuntimeError, r"size \[N, 3, 6, 6\].*got size \[\]"),
        (random(2, 3, 6, 6).double(), RuntimeError, "scalar type torch.float32 but found torch.float64"),
        (random(2, 3, 6, 6).to("meta"), RuntimeError, "on the CPU, but .* is on meta"),
        (random(2, 3, 6, 6).requires_grad_(), RuntimeError, "requires grad"),
        (None, TypeError, "must be Tensor, not NoneType"),
    ],
    ids=["width", "rank", "scalar", "dtype", "device", "grad", "type"],
)
def test_program_refuses(mixed: Any, argument: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mixed(argument)


def test_program_refuses_inputs_of_several_batches() -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a.cos() + b.sin()

    compiled = fastcnn.compile(Sum().eval(), (random(2, 3), random(2, 3)))
    with pytest.raises(RuntimeError, match=r"expected b of batch 3, but got size \[2, 3\]"):
        compiled(random(3, 3), random(2, 3))
    with pytest.raises(TypeError, match=r"takes 2 positional arguments .* but 1 were given"):
        compiled(random(3, 3))


def _program(*records: list[int], texts: tuple[str, ...] = (), outputs: tuple[int, ...] = (1,), **given: Any) -> Any:
    arguments = {
        **{"inputs": [("x", [3, 4], torch.float32)], "batch": 0, "slots": 2, "plans": [], "numbers": [0.5]},
        **{"constants": [torch.ones(4)], **given},
    }
    return _library.program(records=list(records), texts=list(texts), outputs=list(outputs), **arguments)


def _call(*arguments: int, name: str = "aten.mul.Tensor", several: int = 0, outputs: tuple[int, ...] = (1,)) -> Any:
    """A program of one call, whose texts are its name and "float32"."""
    record = [OPERATOR, 0, several, len(outputs), *outputs, *arguments]
    return _program(record, texts=(name, "float32"), outputs=outputs, slots=1 + max(1, len(outputs)))


SIZE = [OPERATOR, 0, 0, 1, 1, SLOT, 0, INT, 0]  # slot 1 is the batch's size
HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "kind of record": (lambda: _program([2]), "a plan's or an operator's record"),
    "empty record": (lambda: _program([]), "a plan's or an operator's record"),
    "plan": (lambda: _program([PLAN, 0, 0, 1]), "one of 0 plans"),
    "name": (lambda: _program([OPERATOR, 0, 0, 1, 1]), "expected name of 0 to -1"),
    "unknown operator": (lambda: _call(SLOT, 0, name="aten.nothing.default"), "an operator of torch's"),
    "no operator": (lambda: _call(SLOT, 0, name="os"), "an operator of torch's"),
    "writing operator": (lambda: _call(SLOT, 0, name="aten.relu_.default"), "does not write"),
    "no argument": (lambda: _call(SLOT, 0), "kind of argument as number 7"),
    "too many arguments": (lambda: _call(SLOT, 0, INT, 1, INT, 1), "expected arguments of 9 numbers, but got 11"),
    "kind of argument": (lambda: _call(SLOT, 0, 10), "kind of argument of 0 to 9, but got 10"),
    "no default": (lambda: _call(SLOT, 0, ABSENT), "argument 'other', which has no default"),
    "none": (lambda: _call(SLOT, 0, NONE), "argument 'other' of type Tensor, but got none"),
    "text": (lambda: _call(SLOT, 0, TEXT, 0), "argument 'other' of type Tensor, but got a text"),
    "text's place": (lambda: _call(SLOT, 0, TEXT, 2, name="aten.gelu.default"), "expected text of 0 to 1, but got 2"),
    "number's place": (lambda: _call(SLOT, 0, NUMBER, 1), "expected number of 0 to 0, but got 1"),
    "tensor's place": (lambda: _call(SLOT, 0, CONSTANT, -1), "expected tensor of 0 to 0, but got -1"),
    "list": (lambda: _call(SLOT, 0, LIST, 1, INT, 1), "but got a list"),
    "length of a list": (lambda: _call(SLOT, 0, LIST, 2**40, name="aten.view.default"), "length of a list of 0 to 9"),
    "list of numbers": (lambda: _call(SLOT, 0, LIST, 1, NUMBER, 0, name="aten.view.default"), "but got a number"),
    "list of tensors": (lambda: _call(SLOT, 0, LIST, 1, SLOT, 0, name="aten.view.default"), "SymInt, but got a tensor"),
    "one for a list": (lambda: _call(SLOT, 0, INT, 3, name="aten.view.default"), "but got one value"),
    "number for a boolean": (lambda: _call(SLOT, 0, LIST, 1, INT, 1, INT, 1, ABSENT, name="aten.mean.dim"), "bool"),
    "name for a number": (lambda: _call(SLOT, 0, NAMED, 1, INT, 1, name="aten.transpose.int"), "got float32"),
    "number for a dtype": (lambda: _call(SLOT, 0, INT, 1, INT, 99, name="aten.softmax.int"), "'dtype' of type"),
    "no name": (lambda: _call(SLOT, 0, INT, 1, NAMED, 0, name="aten.softmax.int"), "the name of a dtype"),
    "slot": (lambda: _call(SLOT, 2, INT, 1), "expected slot of 0 to 1, but got 2"),
    "empty slot": (lambda: _call(SLOT, 1, INT, 1), "slot 1 to have been filled"),
    "filled slot": (lambda: _call(SLOT, 0, INT, 1, outputs=(0,)), "slot 0 to be empty"),
    "several results": (lambda: _call(SLOT, 0, INT, 1, several=1), "results that it has, 1"),
    "fewer results": (
        lambda: _call(SLOT, 0, INT, 1, BOOL, 0, name="aten.max.dim", several=1),
        "results that it has, 2",
    ),
    "result of another type": (lambda: _call(SLOT, 0, name="aten.qscheme.default"), "tensors or numbers"),
    "tensor for an integer": (lambda: _call(SLOT, 0, INT, 1, name="operator.add"), "of type int, but got a tensor"),
    "integer for a plan": (
        lambda: _program(SIZE, [PLAN, 0, 1, 2], texts=("aten.sym_size.int",), plans=[_identity()], slots=3),
        "a tensor in slot 1",
    ),
    "inputs of a plan": (lambda: _program([PLAN, 0, 1], plans=[_identity()]), "1 inputs and 1 outputs"),
    "slot of a plan": (lambda: _program([PLAN, 0, 0, 9], plans=[_identity()]), "one of 2 slots, but got 9"),
    "outputs": (lambda: _program(outputs=(1,)), "outputs that are filled, but got slot 1"),
    "output's slot": (lambda: _program(outputs=(-1,)), "but got slot -1"),
    "slots": (lambda: _program(slots=2**60), str(2**60)),
    "no slots": (lambda: _program(slots=0), "a slot for each of 1 inputs"),
    "no inputs": (lambda: _program(inputs=[]), "0 inputs, at least one"),
    "batch": (lambda: _program(batch=-1), "a batch of 0 or more, but got -1"),
}


def _identity() -> Any:
    return _library.plan([[1, 0, 0, 0, 3, 0, 0], [2, 0, 0, 0, 3, 3, 0]], [[8, 0, 1]], [], 0)


@pytest.mark.parametrize("name", HOSTILE)
def test_program_refuses_what_is_not_well_formed(name: str) -> None:
    make, message = HOSTILE[name]
    with pytest.raises(RuntimeError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"args": [{"slot": 0}, "all"]}, "argument 'dim' of type int, but got a text"),
        ({"kwargs": {"axis": 1}}, "takes no argument axis"),
        ({"args": [{"slot": 0}, 1, None, 4]}, "takes no argument 3"),
        ({"outputs": []}, "results that it has, 1, but got 0"),
    ],
    ids=["type", "keyword", "count", "results"],
)
def test_documents_of_wrong_calls_are_refused(mixed: Any, change: dict[str, Any], message: str) -> None:
    program = mixed._executable.program
    document = copy.deepcopy(program.document)
    next(segment for segment in document["segments"] if segment.get("op") == "aten.softmax.int").update(change)
    with pytest.raises((RuntimeError, ValueError)) as error:
        executable.prepare(Program(document, program.constants))
    assert message in str(error.value)


@pytest.mark.parametrize("batch", [0, 2])
def test_program_says_what_integers_do_not_hold(batch: int) -> None:
    divided = [OPERATOR, 1, 0, 1, 2, INT, 1, SLOT, 1]
    program = _program(SIZE, divided, texts=("aten.sym_size.int", "operator.floordiv"), outputs=(2,), slots=3)
    if batch:
        assert program.run([random(batch, 3, 4)]) == [0]
    else:
        with pytest.raises(RuntimeError, match=r"operator.floordiv .*but got 1 and 0"):
            program.run([random(batch, 3, 4)])


def test_integers_round_down_as_pythons() -> None:
    texts, names = ("aten.sym_size.int", "operator.floordiv"), range(-7, 8)
    for a in names:
        divided = [OPERATOR, 1, 0, 1, 2, INT, a, SLOT, 1]
        program = _program(SIZE, divided, texts=texts, outputs=(2,), slots=3)
        assert program.run([random(3, 3, 4)]) == [a // 3]
        divided = [OPERATOR, 1, 0, 1, 2, SLOT, 1, INT, a]
        if a != 0:
            assert _program(SIZE, divided, texts=texts, outputs=(2,), slots=3).run([random(3, 3, 4)]) == [3 // a]


def test_layouts_and_devices_stand_for_the_same() -> None:
    arguments = [SLOT, 0, ABSENT, NAMED, 1, NAMED, 2, ABSENT, ABSENT]
    record = [OPERATOR, 0, 0, 1, 1, *arguments]
    program = _program(record, texts=("aten.zeros_like.default", "strided", "cpu"))
    assert torch.equal(program.run([random(2, 3, 4)])[0], torch.zeros(2, 3, 4))


def test_results_of_several_types_keep_them() -> None:
    @torch.library.custom_op("fastcnn_test::halves", mutates_args=())
    def halves(x: Tensor) -> tuple[Tensor, int, float]:
        return x / 2, x.shape[1], 0.25

    record = [OPERATOR, 0, 1, 3, 1, 2, 3, SLOT, 0]
    scaled = [OPERATOR, 1, 0, 1, 4, SLOT, 1, SLOT, 3]
    names = ("fastcnn_test.halves.default", "aten.mul.Tensor")
    x = random(2, 3, 4)
    result, size, number = _program(record, scaled, texts=names, outputs=(4, 2, 3), slots=5).run([x])
    assert torch.equal(result, x / 2 * 0.25) and (size, number) == (3, 0.25)


def test_programs_with_operators_run_in_several_threads_at_once(mixed: Any) -> None:
    images = [random(batch, 3, 6, 6, seed=batch) for batch in (1, 2, 3, 4)]
    expected = [mixed(image) for image in images]
    wrong: list[int] = []

    def call(index: int) -> None:
        for _ in range(20):
            got = mixed(images[index])
            if not all(torch.equal(got[key], expected[index][key]) for key in got):
                wrong.append(index)

    run_in_threads(call, 4)
    assert not wrong


def test_names_stand_for_the_same_in_both_languages() -> None:
    given = {"dtype": "aten.to.dtype", "memory_format": "aten.clone.default"}
    for key, name in given.items():
        for text, value in spec._NAMED[key].items():
            arguments = [SLOT, 0, NAMED, 1] + ([ABSENT, ABSENT, ABSENT] if key == "dtype" else [])
            program = _program([OPERATOR, 0, 0, 1, 1, *arguments], texts=(name, text), inputs=_IMAGE)
            result = program.run([random(2, 3, 4, 5)])[0]
            if key == "dtype":
                assert result.dtype == value
            else:
                assert result.is_contiguous(memory_format=torch.contiguous_format if "pres" in text else value)


_IMAGE = [("x", [3, 4, 5], torch.float32)]


def test_switches_hold_for_the_whole_call(mixed: Any) -> None:
    x = random(3, 3, 6, 6)
    with backends.batch_invariant(True):
        assert torch.equal(mixed(x[:1])["y"], mixed(x)["y"][:1])
