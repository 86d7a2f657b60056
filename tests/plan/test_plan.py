"""Plans made by hand: whole ones against torch in float64, the checks of a plan, and runs side by side."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conditions import LAYOUTS, relative_error, tolerance, with_layout
from plans import (
    ACTIVATION,
    ADAPTIVE_AVG_POOL2D,
    ADD,
    ARENA,
    AVG_POOL2D,
    CONV2D,
    COPY,
    MAX_POOL2D,
    NONE,
    RELU,
    SCALE_SHIFT,
    PlanBuilder,
    check_plan,
)
from threads import run_in_threads
from torch import Tensor
from torch.masked import masked_tensor
from torch.nn import functional as F

from fastcnn import backends

BATCHES = [0, 1, 3, 9]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


def _concat_net(width: int = 8) -> tuple[Any, Any]:
    """Two branches that write their channels of one value, memory used again, and their reference."""
    weights = [
        torch.randn(width, 3, 3, 3),
        torch.randn(9, width, 1, 1),
        torch.randn(7, 3, 5, 5),
        torch.randn(5, 16, 3, 3),
    ]
    plan = PlanBuilder()
    x = plan.input(3, 12, 10)
    hidden = plan.inside(width, 12, 10)
    both = plan.inside(16, 12, 10)
    plan.conv2d(x, hidden, weights[0], activation=RELU, padding=(1, 1))
    plan.conv2d(hidden, plan.inside(9, 12, 10, pitch=16, first=0, at=both), weights[1])
    plan.conv2d(x, plan.inside(7, 12, 10, pitch=16, first=9, at=both), weights[2], padding=(2, 2))
    again = plan.inside(5, 12, 10, at=hidden)
    plan.conv2d(both, again, weights[3], activation=RELU, padding=(1, 1))
    plan.conv2d(both, plan.output(5, 12, 10), weights[3], None, again, padding=(1, 1))
    plan.linear(again, plan.output(4), torch.ones(4, 600))

    def reference(x: Tensor) -> list[Tensor]:
        x, (a, b, c, d) = x.double(), (w.double() for w in weights)
        joined = torch.cat([F.conv2d(F.relu(F.conv2d(x, a, padding=1)), b), F.conv2d(x, c, padding=2)], 1)
        last = F.conv2d(joined, d, padding=1)
        return [last + F.relu(last), F.relu(last).sum((1, 2, 3))[:, None].expand(-1, 4)]

    return plan, reference


def _large_net() -> tuple[Any, Any]:
    """A network whose steps are worth sharing out: Winograd's, direct and depthwise convolutions, a linear layer."""
    weights = [
        torch.randn(64, 3, 3, 3) / 5,
        torch.randn(64, 64, 3, 3) / 24,
        torch.randn(96, 64, 1, 1) / 8,
        torch.randn(96, 1, 3, 3) / 3,
        torch.randn(40, 96 * 144) / 100,
    ]
    plan = PlanBuilder()
    x, first, second = plan.input(3, 24, 24), plan.inside(64, 24, 24), plan.inside(64, 24, 24)
    third, fourth, pooled = plan.inside(96, 24, 24), plan.inside(96, 24, 24), plan.inside(96, 12, 12)
    plan.conv2d(x, first, weights[0], activation=RELU, padding=(1, 1))
    plan.conv2d(first, second, weights[1], None, first, activation=RELU, padding=(1, 1))
    plan.conv2d(second, third, weights[2], activation=RELU)
    plan.conv2d(third, fourth, weights[3], padding=(1, 1), groups=96)
    plan.step(MAX_POOL2D, fourth, pooled, 2, 2, 2, 2, 0, 0, 1, 1, 0)
    plan.linear(pooled, plan.output(40), weights[4])

    def reference(x: Tensor) -> list[Tensor]:
        x, (a, b, c, d, e) = x.double(), (w.double() for w in weights)
        y = F.relu(F.conv2d(x, a, padding=1))
        y = F.relu(F.conv2d(F.relu(F.conv2d(y, b, padding=1) + y), c))
        return [F.max_pool2d(F.conv2d(y, d, padding=1, groups=96), 2).permute(0, 2, 3, 1).flatten(1) @ e.t()]

    return plan, reference


NETS: dict[str, tuple[Any, tuple[int, int, int], int]] = {  # the network, its input, and terms of the sums
    "small": (_concat_net, (3, 12, 10), 4000),
    "large": (_large_net, (3, 24, 24), 16 * 14000),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_network_matches_torch_with_memory_used_again(batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    plan, reference = _concat_net()
    made = plan.make()
    for layout in LAYOUTS:
        x = with_layout(torch.randn(batch, 3, 12, 10), layout)
        check_plan(made, [x], reference(x), 4000)
    assert len(made.describe()) == len(plan.steps)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [7, 8, 13])
def test_batches_run_in_parts_that_share_nothing(batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    size = 300  # the arena of an image is larger than a cache
    weight = torch.randn(16, 2, 3, 3)
    plan = PlanBuilder()
    source, added = plan.input(2, size, size), plan.input(16)
    hidden, pooled = plan.inside(16, size, size), plan.inside(16, 1, 1)
    plan.conv2d(source, hidden, weight, None, padding=(1, 1), activation=RELU)
    plan.step(ADAPTIVE_AVG_POOL2D, hidden, pooled)
    plan.step(ADD, pooled, added, plan.output(16), NONE)
    plan.step(COPY, hidden, plan.output(16, size, size))
    x, y = torch.randn(batch, 2, size, size), torch.randn(batch, 32)[:, ::2]
    convolved = F.relu(F.conv2d(x.double(), weight.double(), padding=1))
    made = plan.make()
    for _ in range(2):
        check_plan(made, [x, y], [convolved.mean((2, 3)) + y.double(), convolved], 18 * 16)


def test_output_may_be_written_in_parts() -> None:
    x = torch.randn(2, 3, 4, 4)
    plan = PlanBuilder()
    source = plan.input(3, 4, 4)
    for first in (0, 3):
        plan.step(COPY, source, plan.output(3, 4, 4, index=0, pitch=6, first=first))
    assert torch.equal(plan.make().run([x])[0], torch.cat([x, x], 1))


@pytest.mark.parametrize("name", NETS)
def test_threads_may_share_a_plan(name: str) -> None:
    build, size, terms = NETS[name]
    plan, reference = build()
    made = plan.make()

    def work(seed: int) -> None:
        torch.set_num_threads(2)
        generator = torch.Generator().manual_seed(seed)
        for batch in (1, 4, 9, 2, 3):
            x = torch.randn(batch, *size, generator=generator)
            check_plan(made, [x], reference(x), terms)

    run_in_threads(work, 6)


@pytest.mark.parametrize(
    ("calls", "most"),
    [(lambda run: run_in_threads(lambda _: run(1), 9), 4), (lambda run: [run(n) for n in [8, *[1] * 33]], 1)],
    ids=["of many calls at a time", "of a large batch"],
)
def test_plan_keeps_few_blocks_of_memory(calls: Any, most: int) -> None:
    plan = PlanBuilder()
    source, hidden = plan.input(2, 300, 300), plan.inside(16, 300, 300)
    plan.conv2d(source, hidden, torch.randn(16, 2, 1, 1))
    plan.step(ADAPTIVE_AVG_POOL2D, hidden, plan.output(16, 1, 1))
    made = [plan.make()]
    calls(lambda batch: made[0].run([torch.randn(batch, 2, 300, 300)]))
    backends.empty_cache()
    before = backends.cached_memory()
    made.clear()
    assert 4 * plan.arena <= backends.cached_memory() - before <= most * 4 * plan.arena + 2**20


@pytest.mark.parametrize("threads", [1, 2, 5, 16])
@pytest.mark.parametrize("batch", [1, 3])
def test_large_network_gives_the_same_on_any_number_of_threads(threads: int, batch: int) -> None:
    torch.set_num_threads(threads)
    build, size, terms = NETS["large"]
    plan, reference = build()
    x = torch.randn(batch, *size)
    check_plan(plan.make(), [x], reference(x), terms)


@pytest.mark.parametrize("name", NETS)
def test_plan_runs_within_a_parallel_region(name: str) -> None:
    build, size, terms = NETS[name]
    plan, reference = build()
    made, results = plan.make(), {}
    inputs = [torch.randn(2, *size) for _ in range(3)]

    def work(_: object) -> None:
        results[threading.get_ident()] = [made.run([x]) for x in inputs]

    # torch's OpenMP runtime, which is loaded: each of its threads calls back, and is in a parallel region then.
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libgomp" in line:
            ctypes.CDLL(line.split()[-1]).GOMP_parallel(callback, None, 2, 0)
            break
    assert len(results) == 2
    for outputs in results.values():
        for x, got in zip(inputs, outputs, strict=True):
            for tensor, wanted in zip(got, reference(x), strict=True):
                assert relative_error(tensor.double(), wanted) <= tolerance(terms, torch.float32)


def test_output_requires_no_grad() -> None:
    plan, _ = _concat_net()
    x = torch.randn(1, 3, 12, 10, requires_grad=True)
    with torch.no_grad():
        assert not any(t.requires_grad for t in plan.make().run([x]))
    with pytest.raises(RuntimeError, match="gradient"):
        plan.make().run([x])


def _valid() -> PlanBuilder:
    plan = PlanBuilder()
    x, hidden, out = plan.input(3, 8, 8), plan.inside(4, 8, 8), plan.output(4, 8, 8)  # values 0, 1, 2
    plan.conv2d(x, hidden, torch.randn(4, 3, 3, 3), torch.randn(4), padding=(1, 1))
    plan.step(ACTIVATION, hidden, out, RELU)
    return plan


def _with_value(number: int, field: int, new: int) -> PlanBuilder:
    plan = _valid()
    plan.values[number][field] = new
    return plan


def _with_field(step: int, field: int, new: int) -> PlanBuilder:
    plan = _valid()
    plan.steps[step][field] = new
    return plan


def _with_constant(number: int, new: Tensor) -> PlanBuilder:
    plan = _valid()
    plan.constants[number] = new
    return plan


def _with_step(*record: int) -> PlanBuilder:
    plan = _valid()
    plan.steps.append(list(record))
    return plan


def _with_arena(arena: int) -> PlanBuilder:
    plan = _valid()
    plan.arena = arena
    return plan


def _with_steps(count: int) -> PlanBuilder:
    plan = _valid()
    plan.steps = plan.steps[:count]
    return plan


BAD: dict[str, tuple[Any, list[str]]] = {
    "storage": (lambda: _with_value(1, 0, 3), ["value 1", "storage", "3"]),
    "short value": (lambda: _with_values([[0, 1]]), ["value 0", "7", "2"]),
    "offset": (lambda: _with_value(1, 1, 8), ["multiple of 16", "8"]),
    "negative offset": (lambda: _with_value(1, 1, -16), ["-16"]),
    "offset beyond the arena": (lambda: _with_value(1, 1, 16), ["arena", "256", "16"]),
    "huge offset": (lambda: _with_value(1, 1, 2**62), [str(2**62)]),
    "height": (lambda: _with_value(1, 2, 0), ["height", "0"]),
    "huge width": (lambda: _with_value(1, 3, 2**62), [str(2**62)]),
    "negative channels": (lambda: _with_value(1, 4, -1), ["channels", "-1"]),
    "pitch": (lambda: _with_value(1, 5, 3), ["pitch", "3"]),
    "first channel": (lambda: _with_value(1, 6, 1), ["1 + 4", "pitch of 4"]),
    "huge image": (lambda: _with_value(1, 5, 2**31), ["floats", "137438953472", "256"]),
    "missing input": (lambda: _with_value(0, 1, 1), ["input 0"]),
    "input index": (lambda: _with_value(0, 1, -1), ["-1"]),
    "output index": (lambda: _with_value(2, 1, 2**40), [str(2**40)]),
    "output shape": (lambda: _with_output(4, 8, 9), ["[N, 4, 8, 8]", "[N, 4, 8, 9]"]),
    "arena": (lambda: _with_arena(-1), ["-1"]),
    "arena too small": (lambda: _with_arena(255), ["256", "255"]),
    "opcode": (lambda: _with_field(0, 0, 11), ["opcode", "11"]),
    "short record": (lambda: _with_step(ADD, 0, 0), ["record of 3"]),
    "long record": (lambda: _with_step(COPY, 1, 2, 0), ["3 numbers", "4"]),
    "value": (lambda: _with_field(0, 1, 7), ["in", "7"]),
    "negative value": (lambda: _with_field(0, 2, -1), ["out", "-1"]),
    "written input": (lambda: _with_step(COPY, 1, 0), ["no input", "value 0"]),
    "constant": (lambda: _with_field(0, 3, 2), ["weight", "2"]),
    "residual": (lambda: _with_field(0, 5, 3), ["residual", "3"]),
    "residual shape": (lambda: _with_field(0, 5, 0), ["channels", "3", "4"]),
    "activation": (lambda: _with_field(0, 6, 7), ["activation", "7"]),
    "stride": (lambda: _with_field(0, 7, 0), ["stride_h", "0"]),
    "padding": (lambda: _with_field(0, 9, -1), ["pad_h", "-1"]),
    "padded size": (lambda: _with_large_halo(), ["floats an image", str(2**20)]),
    "dilation": (lambda: _with_field(0, 11, 2**40), ["dilation_h", str(2**40)]),
    "output size": (lambda: _with_field(0, 9, 2), ["10 x 8", "8 x 8"]),
    "groups": (lambda: _with_field(0, 13, 2), ["groups=2", "3"]),
    "weight": (lambda: _with_constant(0, torch.randn(4, 2, 3, 3)), ["[4, 3, 3, 3]", "[4, 2, 3, 3]"]),
    "flat weight": (lambda: _with_constant(0, torch.randn(108)), ["four dimensions", "[108]"]),
    "bias": (lambda: _with_constant(1, torch.randn(5)), ["[4]", "[5]"]),
    "dtype": (lambda: _with_constant(1, torch.randn(4, dtype=torch.float64)), ["constant 1", "Double"]),
    "overlap": (lambda: _overlapping(), ["overlap"]),
    "not written": (lambda: _with_field(1, 1, 2), ["value 2", "written"]),
    "output not written": (lambda: _with_steps(1), ["output 0"]),
    "pool padding": (lambda: _with_step(MAX_POOL2D, 1, 2, 2, 2, 2, 2, 2, 1, 1, 1, 0), ["pad_h", "2"]),
    "pool size": (lambda: _with_step(AVG_POOL2D, 1, 2, 2, 2, 2, 2, 0, 0, 0, 1, 0), ["4 x 4", "8 x 8"]),
    "adaptive channels": (lambda: _with_step(ADAPTIVE_AVG_POOL2D, 0, 2), ["3", "4"]),
    "linear": (lambda: _with_step(4, 1, 2, 0, -1, 0), ["one pixel", "8 x 8"]),
    "scale": (lambda: _with_step(SCALE_SHIFT, 1, 2, 1, 0, 0), ["shift", "[4]", "[4, 3, 3, 3]"]),
    "add": (lambda: _with_step(ADD, 1, 0, 2, 0), ["3", "4"]),
    "pooled input": (lambda: _pooled(4, 4, 4, pooled=0), ["pooled", "no input"]),
    "pooled number": (lambda: _pooled(4, 4, 4, pooled=9), ["pooled", "9"]),
    "pooled size": (lambda: _pooled(4, 4, 3), ["half of 9 x 8", "4 x 3"]),
    "pooled channels": (lambda: _pooled(5, 4, 4), ["4", "5"]),
    "pooled over its room": (lambda: _pooled(4, 4, 4, at=1), ["overlap"]),
    "pooled returned": (lambda: _pooled(4, 4, 4, room=2), ["value 2", "the arena's"]),
    "pooled with a residual": (lambda: _pooled(4, 4, 4, residual=1), ["no residual"]),
    "room read": (lambda: _pooled(4, 4, 4, read=1), ["value 1", "written"]),
}


def _pooled(*chw: int, pooled: int = 3, at: int | None = None, room: int = 1, residual: int = -1, read: int = 3) -> Any:
    """A convolution whose maxima are value 3, copied to the output."""
    plan = PlanBuilder()
    source, inside, out = plan.input(3, 9, 8), plan.inside(4, 9, 8), plan.output(4, 9, 8)
    plan.inside(*chw, at=at)
    if residual == inside:
        plan.conv2d(source, inside, torch.randn(4, 3, 3, 3), padding=(1, 1))
    plan.conv2d(source, room, torch.randn(4, 3, 3, 3), None, residual, RELU, padding=(1, 1), pooled=pooled)
    plan.step(COPY, read, out if read == inside else plan.output(*chw))
    return plan


def _with_values(values: list[list[int]]) -> PlanBuilder:
    plan = PlanBuilder()
    plan.values = values
    return plan


def _with_output(*chw: int) -> PlanBuilder:
    plan = _valid()
    plan.output(*chw, index=0)
    return plan


def _with_large_halo() -> PlanBuilder:
    plan = PlanBuilder()
    channels, wide = 64, 2**20
    weight = torch.randn(1, channels, 1, 1)
    plan.conv2d(plan.input(channels, 1, 1), plan.output(1, 3, 3), weight, stride=(wide, wide), padding=(wide, wide))
    return plan


def _overlapping() -> PlanBuilder:
    plan = _valid()
    plan.values.append([ARENA, 0, 8, 8, 4, 4, 0])
    plan.steps.append([CONV2D, 1, 3, plan.constant(torch.randn(4, 4, 1, 1)), -1, -1, 0, 1, 1, 0, 0, 1, 1, 1, -1])
    return plan


@pytest.mark.parametrize("name", BAD)
def test_bad_plan_is_refused(name: str) -> None:
    make, words = BAD[name]
    with pytest.raises(RuntimeError) as error:
        make().make()
    for word in words:
        assert word in str(error.value)


def test_valid_plan_is_taken() -> None:
    assert _valid().make().run([torch.randn(2, 3, 8, 8)])[0].shape == (2, 4, 8, 8)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], ["1 inputs", "0"]),
        ([torch.randn(2, 3, 8, 9)], ["[N, 3, 8, 8]", "[2, 3, 8, 9]"]),
        ([torch.randn(2, 3)], ["[N, 3, 8, 8]", "[2, 3]"]),
        ([torch.randn(2, 3, 8, 8, dtype=torch.float64)], ["float32", "Double"]),
        ([torch.empty(2, 3, 8, 8, device="meta")], ["CPU", "Meta"]),
        ([torch._efficientzerotensor(2, 3, 8, 8)], ["memory of its own"]),
        ([masked_tensor(torch.randn(2, 3, 8, 8), torch.ones(2, 3, 8, 8, dtype=torch.bool))], ["memory of its own"]),
    ],
)
def test_bad_input_is_refused(inputs: list[Tensor], words: list[str]) -> None:
    with pytest.raises(RuntimeError) as error:
        _valid().make().run(inputs)
    for word in words:
        assert word.lower() in str(error.value).lower()


def test_inputs_of_two_batch_sizes_are_refused() -> None:
    plan = PlanBuilder()
    plan.step(ADD, plan.input(3), plan.input(3), plan.output(3), NONE)
    with pytest.raises(RuntimeError, match="one batch size, but got 2 and 3"):
        plan.make().run([torch.randn(2, 3), torch.randn(3, 3)])


def test_value_overwritten_in_between_is_refused() -> None:
    plan = PlanBuilder()
    x, a, out = plan.input(3, 4, 4), plan.inside(3, 4, 4), plan.output(3, 4, 4)
    plan.step(COPY, x, a)
    plan.step(ADAPTIVE_AVG_POOL2D, x, plan.inside(3, 2, 2, at=a))
    plan.step(COPY, a, out)
    with pytest.raises(RuntimeError, match="written before"):
        plan.make()
