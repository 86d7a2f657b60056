"""Plans made by hand: each step against torch in float64, the checks of a plan, and runs side by side."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conditions import LAYOUTS, relative_error, tolerance, with_layout
from kernels import capabilities, recorded
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
    SIGMOID,
    PlanBuilder,
    activate,
)
from threads import run_in_threads
from torch import Tensor
from torch.nn import functional as F

from fastcnn import backends

CHANNELS = [1, 3, 7, 8, 9, 16, 17, 33]
BATCHES = [0, 1, 3]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


def _check(plan: Any, inputs: list[Tensor], expected: list[Tensor], terms: int) -> None:
    outputs = plan.run(inputs)
    assert len(outputs) == len(expected)
    for got, wanted in zip(outputs, expected, strict=True):
        assert got.dtype == torch.float32
        assert got.is_contiguous(memory_format=torch.channels_last) if got.dim() == 4 else got.is_contiguous()
        assert relative_error(got.double(), wanted) <= tolerance(terms, torch.float32)


CONVS: list[dict[str, Any]] = [
    {"c": 3, "k": 16, "kernel": (7, 7), "stride": (2, 2), "padding": (3, 3), "activation": RELU},
    {"c": 16, "k": 33, "kernel": (3, 3), "padding": (1, 1), "residual": True, "activation": RELU},
    {"c": 17, "k": 9, "kernel": (3, 3), "padding": (1, 1), "residual": True, "activation": SIGMOID},
    {"c": 9, "k": 17, "kernel": (3, 2), "stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)},
    {"c": 33, "k": 7, "kernel": (1, 1), "residual": True},
    {"c": 8, "k": 16, "kernel": (1, 1), "stride": (2, 2), "bias": False, "residual": True, "activation": RELU},
    {"c": 1, "k": 6, "kernel": (5, 5), "padding": (2, 2), "activation": SIGMOID},
    {"c": 7, "k": 3, "kernel": (3, 3), "padding": (1, 1), "residual": True, "activation": RELU},
    {"c": 16, "k": 8, "kernel": (5, 5), "padding": (2, 2)},
    {"c": 8, "k": 16, "kernel": (3, 3), "padding": (1, 1), "groups": 4, "residual": True},
    {"c": 17, "k": 17, "kernel": (3, 3), "stride": (2, 1), "padding": (1, 1), "groups": 17, "activation": RELU},
    {"c": 33, "k": 33, "kernel": (3, 3), "padding": (1, 1), "groups": 33, "residual": True, "activation": RELU},
]


def _conv2d(config: dict[str, Any], batch: int, layout: str) -> None:
    """The layer of the input, into channels of a wider value, and out of there again."""
    config = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "activation": NONE} | config
    c, k, h, w = config.pop("c"), config.pop("k"), 11, 9
    kernel, bias, residual = config.pop("kernel"), config.pop("bias", True), config.pop("residual", False)
    activation = config.pop("activation")
    terms = (c // config["groups"]) * kernel[0] * kernel[1]
    weight = torch.randn(k, c // config["groups"], *kernel) * terms**-0.5
    if kernel in ((3, 3), (5, 5)):  # Winograd's algorithm may run, whose rounding errors are some 3 times as large
        terms *= 16
    bias = torch.randn(k) if bias else None
    x = with_layout(torch.randn(batch, c, h, w), layout)
    wanted = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), **config)
    added = torch.randn(wanted.shape)
    wanted = activate(wanted + added.double() if residual else wanted, activation)

    plan = PlanBuilder()
    source, out_size = plan.input(c, h, w), (k, *wanted.shape[2:])
    addend = plan.input(*out_size) if residual else -1
    wide = plan.inside(*out_size, pitch=k + 21, first=13)
    plan.conv2d(source, wide, weight, bias, addend, activation, **config)
    result = plan.output(*out_size)
    plan.step(COPY, wide, result)
    _check(plan.make(), [x, added] if residual else [x], [wanted], terms)

    # In the residual's place, from channels of a wider value.
    plan = PlanBuilder()
    source, out_size = plan.input(c, h, w), (k, *wanted.shape[2:])
    wide = plan.inside(c, h, w, pitch=c + 19, first=5)
    plan.step(COPY, source, wide)
    addend = plan.inside(*out_size)
    result = plan.output(*out_size)
    if residual:
        plan.step(COPY, plan.input(*out_size), addend)
    target = plan.inside(*out_size, at=addend)
    plan.conv2d(wide, target, weight, bias, addend if residual else -1, activation, **config)
    plan.step(COPY, target, result)
    _check(plan.make(), [x, added] if residual else [x], [wanted], terms)


@pytest.mark.parametrize("config", CONVS)
@pytest.mark.parametrize("batch", BATCHES)
def test_conv2d_matches_torch(config: dict[str, Any], batch: int) -> None:
    for layout in LAYOUTS:
        _conv2d(config, batch, layout)


@pytest.mark.parametrize("capability", capabilities())
@pytest.mark.parametrize("config", CONVS)
def test_conv2d_matches_torch_with_each_instruction_set(config: dict[str, Any], capability: str) -> None:
    with backends.cpu_capability(capability):
        _conv2d(config, 2, "channels_last")


@pytest.mark.parametrize("algorithm", ["direct", "winograd_f4x3", "winograd_f2x3", "winograd_f2x5", "aten"])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("channels", CHANNELS)
def test_conv2d_holds_the_algorithm_in_force(algorithm: str, kernel: int, channels: int) -> None:
    weight, pad = torch.randn(channels + 16, channels, kernel, kernel), (kernel // 2, kernel // 2)
    x, added = torch.randn(2, channels, 10, 7), torch.randn(2, channels + 16, 10, 7)
    plan = PlanBuilder()
    source, addend, out = (
        plan.input(channels, 10, 7),
        plan.input(channels + 16, 10, 7),
        plan.output(channels + 16, 10, 7),
    )
    plan.conv2d(source, out, weight, None, addend, RELU, padding=pad)
    made = plan.make()
    wanted = F.relu(F.conv2d(x.double(), weight.double(), padding=pad) + added.double())
    applies = algorithm.startswith("winograd") and algorithm.endswith(str(kernel))
    with backends.conv2d_algorithm(algorithm):
        for _ in range(2):  # the second run finds the weights ready
            names = recorded(lambda: _check(made, [x, added], [wanted], 4 * weight[0].numel()))
            assert names == [algorithm if applies else "conv2d_direct"]
    with backends.conv2d_algorithm("direct"):
        assert recorded(lambda: made.run([x, added])) == ["conv2d_direct"]


def test_conv2d_of_many_transformed_weights_matches_torch() -> None:
    weight = torch.randn(256, 160, 3, 3)
    x, added = torch.randn(3, 160, 6, 6), torch.randn(3, 256, 6, 6)
    plan = PlanBuilder()
    source, addend, out = plan.input(160, 6, 6), plan.input(256, 6, 6), plan.output(256, 6, 6)
    plan.conv2d(source, out, weight, torch.ones(256), addend, RELU, padding=(1, 1))
    wanted = F.relu(F.conv2d(x.double(), weight.double(), torch.ones(256).double(), padding=1) + added.double())
    made = plan.make()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with backends.conv2d_algorithm("winograd_f4x3"):
            _check(made, [x, added], [wanted], 4 * weight[0].numel())


POOLS: list[dict[str, Any]] = [
    {"kernel": (2, 2), "stride": (2, 2)},
    {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)},
    {"kernel": (3, 3), "stride": (2, 2), "ceil_mode": True},
    {"kernel": (3, 2), "stride": (1, 3), "padding": (1, 0)},
]


def _through_wide(plan: PlanBuilder, c: int, size: tuple[int, int], out: tuple[int, int]) -> tuple[int, int, int]:
    """The input copied to channels of a wider value, and channels of a wider value that are the output's."""
    source = plan.input(c, *size)
    wide = plan.inside(c, *size, pitch=c + 3, first=2)
    plan.step(COPY, source, wide)
    return source, wide, plan.inside(c, *out, pitch=c + 7, first=6)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("config", POOLS)
def test_pools_match_torch(config: dict[str, Any], channels: int) -> None:
    fields = {"padding": (0, 0), "ceil_mode": False} | config
    x = torch.randn(2, channels, 9, 12)
    kernel, stride, padding, ceil_mode = (fields[n] for n in ("kernel", "stride", "padding", "ceil_mode"))
    maximum = F.max_pool2d(x.double(), kernel, stride, padding, ceil_mode=ceil_mode)
    for include, divisor in ((True, 0), (False, 0), (True, 5)):
        average = F.avg_pool2d(x.double(), kernel, stride, padding, ceil_mode, include, divisor or None)
        plan = PlanBuilder()
        source, wide, pooled = _through_wide(plan, channels, (9, 12), tuple(average.shape[2:]))
        plan.step(AVG_POOL2D, wide, pooled, *kernel, *stride, *padding, ceil_mode, include, divisor)
        plan.step(COPY, pooled, plan.output(channels, *average.shape[2:]))
        plan.step(
            MAX_POOL2D, source, plan.output(channels, *average.shape[2:]), *kernel, *stride, *padding, 1, 1, ceil_mode
        )
        _check(plan.make(), [x], [average, maximum], 9)


@pytest.mark.parametrize("out", [(1, 1), (3, 2), (6, 6), (12, 13)])
@pytest.mark.parametrize("channels", CHANNELS)
def test_adaptive_avg_pool2d_matches_torch(channels: int, out: tuple[int, int]) -> None:
    x = torch.randn(2, channels, 9, 12)
    plan = PlanBuilder()
    _, wide, pooled = _through_wide(plan, channels, (9, 12), out)
    plan.step(ADAPTIVE_AVG_POOL2D, wide, pooled)
    plan.step(COPY, pooled, plan.output(channels, *out))
    _check(plan.make(), [x], [F.adaptive_avg_pool2d(x.double(), out)], 108)


def test_max_pool2d_keeps_nan_and_dilates() -> None:
    x = torch.randn(2, 5, 9, 12)
    x[0, 0, 4, 4] = float("nan")
    wanted = F.max_pool2d(x, 3, 1, 1, dilation=2)
    plan = PlanBuilder()
    source, out = plan.input(5, 9, 12), plan.output(5, *wanted.shape[2:])
    plan.step(MAX_POOL2D, source, out, 3, 3, 1, 1, 1, 1, 2, 2, 0)
    assert torch.equal(plan.make().run([x])[0].nan_to_num(7), wanted.nan_to_num(7))


@pytest.mark.parametrize("activation", [NONE, RELU, SIGMOID])
@pytest.mark.parametrize("batch", [0, 1, 2, 9, 70])
@pytest.mark.parametrize("outputs", [1, 7, 8, 17, 70])
def test_linear_matches_torch(outputs: int, batch: int, activation: int) -> None:
    for c, h, w in ((7, 1, 1), (33, 2, 3), (100, 5, 5)):
        x = torch.randn(batch, c, h, w)
        vector = x.permute(0, 2, 3, 1).reshape(batch, c * h * w)
        weight, bias = torch.randn(outputs, c * h * w), torch.randn(outputs)
        wanted = activate(F.linear(vector.double(), weight.double(), bias.double()), activation)
        plan = PlanBuilder()
        source = plan.input(c, h, w)
        plan.linear(source, plan.output(outputs), weight, bias, activation)
        wide = plan.inside(c, h, w, pitch=c + 5, first=3)
        plan.step(COPY, source, wide)
        part = plan.inside(outputs, pitch=outputs + 3, first=1)
        plan.linear(wide, part, weight, bias, activation)
        plan.step(COPY, part, plan.output(outputs))
        _check(plan.make(), [x], [wanted, wanted], c * h * w)


def test_linear_reads_a_strided_vector() -> None:
    x, weight = torch.randn(3, 20)[:, ::2], torch.randn(6, 10)
    for batch in (1, 3):
        plan = PlanBuilder()
        plan.linear(plan.input(10), plan.output(6), weight)
        _check(plan.make(), [x[:batch]], [F.linear(x[:batch].double(), weight.double())], 10)


@pytest.mark.parametrize("capability", capabilities())
@pytest.mark.parametrize("channels", [*CHANNELS, 1500])
def test_rows_match_torch(channels: int, capability: str) -> None:
    size = (channels, 5, 6)
    for batch in (1, 3):
        a, b = torch.randn(batch, *size), torch.randn(batch, *size)
        scale, shift = torch.randn(channels), torch.randn(channels)
        scaled = a.double() * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)
        for activation in (NONE, RELU, SIGMOID):
            plan = PlanBuilder()
            first, second = plan.input(*size), plan.input(*size)
            plan.step(ADD, first, second, plan.output(*size), activation)
            constants = plan.constant(scale), plan.constant(shift)
            wide = plan.inside(*size, pitch=channels + 9, first=4)
            plan.step(SCALE_SHIFT, first, wide, *constants, NONE)
            plan.step(ACTIVATION, wide, wide, activation)  # in place
            plan.step(ACTIVATION, wide, plan.output(*size), NONE)
            wanted = [activate(a.double() + b.double(), activation), activate(scaled, activation)]
            with backends.cpu_capability(capability):
                _check(plan.make(), [a, b], wanted, 4)


@pytest.mark.parametrize("capability", capabilities())
def test_sigmoid_keeps_its_range_and_nan(capability: str) -> None:
    values = torch.cat(
        [torch.linspace(-120, 120, 4801), torch.tensor([torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 0])]
    )
    plan = PlanBuilder()
    plan.step(ACTIVATION, plan.input(1), plan.output(1), SIGMOID)
    with backends.cpu_capability(capability):
        (got,) = plan.make().run([values[:, None]])
    wanted = torch.sigmoid(values.double())[:, None]
    assert torch.equal(got.isnan(), wanted.isnan())
    got, wanted = got[~got.isnan()], wanted[~wanted.isnan()]
    assert ((got - wanted).abs() <= 4 * torch.finfo(torch.float32).eps * wanted + 1e-37).all()


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


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_network_matches_torch_with_memory_used_again(batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    plan, reference = _concat_net()
    made = plan.make()
    for layout in LAYOUTS:
        x = with_layout(torch.randn(batch, 3, 12, 10), layout)
        _check(made, [x], reference(x), 4000)
    assert len(made.describe()) == len(plan.steps)


def test_output_may_be_written_in_parts() -> None:
    x = torch.randn(2, 3, 4, 4)
    plan = PlanBuilder()
    source = plan.input(3, 4, 4)
    for first in (0, 3):
        plan.step(COPY, source, plan.output(3, 4, 4, index=0, pitch=6, first=first))
    assert torch.equal(plan.make().run([x])[0], torch.cat([x, x], 1))


def test_threads_may_share_a_plan() -> None:
    plan, reference = _concat_net()
    made = plan.make()

    def work(seed: int) -> None:
        torch.set_num_threads(2)
        generator = torch.Generator().manual_seed(seed)
        for batch in (1, 4, 2, 3):
            x = torch.randn(batch, 3, 12, 10, generator=generator)
            _check(made, [x], reference(x), 4000)

    run_in_threads(work, 6)


def test_plan_runs_within_a_parallel_region() -> None:
    plan, reference = _concat_net()
    made, results = plan.make(), {}
    inputs = [torch.randn(2, 3, 12, 10) for _ in range(3)]

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
                assert relative_error(tensor.double(), wanted) <= tolerance(4000, torch.float32)


def test_output_requires_no_grad() -> None:
    plan, _ = _concat_net()
    x = torch.randn(1, 3, 12, 10, requires_grad=True)
    assert not any(t.requires_grad for t in plan.make().run([x]))


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
    "opcode": (lambda: _with_field(0, 0, 9), ["opcode", "9"]),
    "short record": (lambda: _with_step(ADD, 0, 0), ["record of 3"]),
    "long record": (lambda: _with_step(COPY, 1, 2, 0), ["3 numbers", "4"]),
    "value": (lambda: _with_field(0, 1, 7), ["in", "7"]),
    "negative value": (lambda: _with_field(0, 2, -1), ["out", "-1"]),
    "written input": (lambda: _with_step(COPY, 1, 0), ["no input", "value 0"]),
    "constant": (lambda: _with_field(0, 3, 2), ["weight", "2"]),
    "residual": (lambda: _with_field(0, 5, 3), ["residual", "3"]),
    "residual shape": (lambda: _with_field(0, 5, 0), ["channels", "3", "4"]),
    "activation": (lambda: _with_field(0, 6, 3), ["activation", "3"]),
    "stride": (lambda: _with_field(0, 7, 0), ["stride_h", "0"]),
    "padding": (lambda: _with_field(0, 9, -1), ["pad_h", "-1"]),
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
}


def _with_values(values: list[list[int]]) -> PlanBuilder:
    plan = PlanBuilder()
    plan.values = values
    return plan


def _with_output(*chw: int) -> PlanBuilder:
    plan = _valid()
    plan.output(*chw, index=0)
    return plan


def _overlapping() -> PlanBuilder:
    plan = _valid()
    plan.values.append([ARENA, 0, 8, 8, 4, 4, 0])
    plan.steps.append([CONV2D, 1, 3, plan.constant(torch.randn(4, 4, 1, 1)), -1, -1, 0, 1, 1, 0, 0, 1, 1, 1])
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
