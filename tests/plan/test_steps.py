"""Each step of a plan against torch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conditions import LAYOUTS, with_layout
from kernels import capabilities, recorded
from plans import (
    ACTIVATION,
    ACTIVATIONS,
    ADAPTIVE_AVG_POOL2D,
    ADD,
    AVG_POOL2D,
    COPY,
    HARD_SIGMOID,
    HARD_SWISH,
    MAX_POOL2D,
    NONE,
    RELU,
    RELU6,
    SCALE_IMAGES,
    SCALE_SHIFT,
    SIGMOID,
    SILU,
    PlanBuilder,
    activate,
    check_plan,
)
from torch.nn import functional as F

from fastcnn import backends

CHANNELS = [1, 3, 7, 8, 9, 16, 17, 33]
BATCHES = [0, 1, 3]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


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
    {"c": 16, "k": 33, "kernel": (3, 3), "padding": (1, 1), "gain": 9, "activation": RELU6},
    {"c": 33, "k": 33, "kernel": (3, 3), "padding": (1, 1), "groups": 33, "gain": 9, "activation": RELU6},
    {"c": 1, "k": 6, "kernel": (5, 5), "padding": (2, 2), "gain": 9, "activation": RELU6},
    {"c": 40, "k": 21, "kernel": (1, 1), "residual": True, "activation": HARD_SWISH},
    {"c": 16, "k": 70, "kernel": (3, 3), "padding": (1, 1), "residual": True, "gain": 3, "activation": SILU},
    {"c": 17, "k": 17, "kernel": (3, 3), "padding": (1, 1), "groups": 17, "gain": 3, "activation": HARD_SWISH},
    {"c": 33, "k": 33, "kernel": (5, 5), "padding": (2, 2), "groups": 33, "residual": True, "activation": SILU},
    {"c": 2, "k": 7, "kernel": (3, 3), "padding": (1, 1), "gain": 3, "activation": HARD_SIGMOID},
]


def _conv2d(config: dict[str, Any], batch: int, layout: str) -> None:
    """The layer of the input, into channels of a wider value, and out of there again."""
    config = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "activation": NONE} | config
    c, k, h, w = config.pop("c"), config.pop("k"), 11, 9
    kernel, bias, residual = config.pop("kernel"), config.pop("bias", True), config.pop("residual", False)
    activation = config.pop("activation")
    terms = (c // config["groups"]) * kernel[0] * kernel[1]
    weight = torch.randn(k, c // config["groups"], *kernel) * config.pop("gain", 1) * terms**-0.5
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
    check_plan(plan.make(), [x, added] if residual else [x], [wanted], terms)

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
    check_plan(plan.make(), [x, added] if residual else [x], [wanted], terms)


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
            names = recorded(lambda: check_plan(made, [x, added], [wanted], 4 * weight[0].numel()))
            assert names == [algorithm if applies else "conv2d_direct"]
    with backends.conv2d_algorithm("direct"):
        assert recorded(lambda: made.run([x, added])) == ["conv2d_direct"]


@pytest.mark.parametrize("capability", capabilities())
@pytest.mark.parametrize("algorithm", ["direct", "winograd_f4x3", "winograd_f2x3", "winograd_f2x5"])
def test_conv2d_leaves_neighbouring_channels_alone(algorithm: str, capability: str) -> None:
    """Layers of one width and then another write one value, each with an activation that counts if it comes twice."""
    size = 5 if algorithm.endswith("5") else 3
    x = torch.randn(2, 17, 7, 9)
    layers = [(33, 1, SILU), (5, 1, HARD_SIGMOID), (17, 17, SIGMOID), (19, 1, HARD_SWISH)]  # out, groups, activation
    plan, wide = PlanBuilder(), sum(out for out, _, _ in layers)
    source, whole, first, wanted = plan.input(17, 7, 9), plan.inside(wide, 7, 9), 0, []
    for out, groups, activation in layers:
        weight, pad = torch.randn(out, 17 // groups, size, size) / size, (size // 2, size // 2)
        part = plan.inside(out, 7, 9, pitch=wide, first=first, at=whole)
        plan.conv2d(source, part, weight, None, activation=activation, padding=pad, groups=groups)
        wanted.append(activate(F.conv2d(x.double(), weight.double(), padding=pad, groups=groups), activation))
        first += out
    plan.step(COPY, whole, plan.output(wide, 7, 9))
    with backends.conv2d_algorithm(algorithm), backends.cpu_capability(capability):
        check_plan(plan.make(), [x], [torch.cat(wanted, 1)], 64 * size * size * 17)


@pytest.mark.parametrize("capability", capabilities())
@pytest.mark.parametrize("activation", range(len(ACTIVATIONS)))
def test_layers_keep_nan_and_infinity(activation: int, capability: str) -> None:
    x = torch.randn(1, 8, 6, 6)
    x[0, 3, 1, 1], x[0, 2, 4, 4] = torch.nan, torch.inf
    for out, groups, kernel in ((16, 1, 1), (6, 1, 3), (8, 8, 3)):
        weight, pad = torch.randn(out, 8 // groups, kernel, kernel), (kernel // 2, kernel // 2)
        plan = PlanBuilder()
        source, output = plan.input(8, 6, 6), plan.output(out, 6, 6)
        plan.conv2d(source, output, weight, None, activation=activation, padding=pad, groups=groups)
        dense = torch.randn(5, 8 * 36)
        plan.linear(source, plan.output(5), dense, activation=activation)
        with backends.winograd(False), backends.cpu_capability(capability):
            got, flat = plan.make().run([x])
        result = F.conv2d(x, weight, padding=pad, groups=groups)
        compared = ~result.isneginf()  # of which torch's silu is NaN, and ours nothing
        wanted = activate(result, activation)
        torch.testing.assert_close(got[compared], wanted[compared], equal_nan=True, rtol=1e-4, atol=1e-5)
        assert bool(flat.isnan().all())


@pytest.mark.parametrize("config", [c for c in CONVS if c.get("residual")] + [CONVS[0], CONVS[6]])
def test_conv2d_is_made_ready_anew_where_a_call_differs_from_the_one_before(config: dict[str, Any]) -> None:
    c, k, (kernel_h, kernel_w) = config["c"], config["k"], config["kernel"]
    options = {name: config[name] for name in ("stride", "padding", "groups") if name in config}
    weight = torch.randn(k, c // options.get("groups", 1), kernel_h, kernel_w)
    out_size = F.conv2d(torch.zeros(1, c, 11, 9), weight, **options).shape[1:]
    plan = PlanBuilder()
    source, addend, out = plan.input(c, 11, 9), plan.input(*out_size), plan.output(*out_size)
    plan.conv2d(source, out, weight, None, addend, RELU, **options)
    made = plan.make()

    def run(batch: int, layout: str, wide: int) -> None:
        x = with_layout(torch.randn(batch, c, 11, 9), layout)
        added = torch.randn(batch, k + wide, *out_size[1:]).to(memory_format=torch.channels_last)[:, wide:]
        wanted = F.relu(F.conv2d(x.double(), weight.double(), **options) + added.double())
        check_plan(made, [x, added], [wanted], 16 * weight[0].numel())

    # What changes from one call to the next is only one of these.
    for batch in (2, 1):
        for layout in LAYOUTS:
            for wide in (0, 5):
                run(batch, layout, wide)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        run(1, "strided", 5)
    with backends.winograd(False):
        run(1, "strided", 5)
    with backends.cpu_capability("baseline"):
        run(1, "strided", 5)
    run(1, "strided", 5)


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
            check_plan(made, [x, added], [wanted], 4 * weight[0].numel())


@pytest.mark.parametrize("capability", capabilities())
@pytest.mark.parametrize("algorithm", ["direct", "winograd_f4x3", "winograd_f2x3", "winograd_f2x5"])
def test_conv2d_gives_maxima_of_its_result(algorithm: str, capability: str) -> None:
    size = 5 if algorithm.endswith("5") else 3
    cases = ((3, 10, 7, RELU), (9, 9, 13, NONE), (17, 8, 8, RELU6), (33, 2, 3, SIGMOID), (8, 5, 4, RELU))
    for channels, height, width, activation in cases:
        weight, bias = torch.randn(channels + 14, channels, size, size), torch.randn(channels + 14)
        plan, pad = PlanBuilder(), (size // 2, size // 2)
        source, room = plan.input(channels, height, width), plan.inside(channels + 14, height, width)
        wide = plan.inside(channels + 14, height // 2, width // 2, pitch=channels + 40, first=21)
        plan.conv2d(source, room, weight, bias, activation=activation, padding=pad, pooled=wide)
        plan.step(COPY, wide, plan.output(channels + 14, height // 2, width // 2))
        made = plan.make()
        for batch in BATCHES:
            x = torch.randn(batch, channels, height, width)
            result = activate(F.conv2d(x.double(), weight.double(), bias.double(), padding=pad), activation)
            with backends.conv2d_algorithm(algorithm), backends.cpu_capability(capability):
                wanted = F.max_pool2d(result, 2)
                given = made, [x], [wanted], weight.numel()
                names = recorded(lambda given=given: check_plan(*given))
            fused = algorithm != "direct" and activation != SIGMOID
            assert ("max_pool2d" in names) == (batch > 0 and not fused)


@pytest.mark.parametrize("algorithm", ["direct", "winograd_f4x3", "winograd_f2x3"])
def test_conv2d_maxima_of_nan_are_nan(algorithm: str) -> None:
    plan, weight, x = PlanBuilder(), torch.randn(17, 16, 3, 3), torch.randn(2, 16, 12, 12)
    x[0, 3, 5, 6] = float("nan")
    room, pooled = plan.inside(17, 12, 12), plan.output(17, 6, 6)
    plan.conv2d(plan.input(16, 12, 12), room, weight, None, padding=(1, 1), pooled=pooled)
    with backends.conv2d_algorithm(algorithm):
        (result,) = plan.make().run([x])
    nan = F.max_pool2d(F.conv2d(x.double(), weight.double(), padding=1), 2).isnan()
    assert nan.any() and result[nan].isnan().all() and result[1].isfinite().all()
    assert result[0, :, :1].isfinite().all() and result[0, :, 5:].isfinite().all()


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
        check_plan(plan.make(), [x], [average, maximum], 9)


@pytest.mark.parametrize("out", [(1, 1), (3, 2), (6, 6), (12, 13)])
@pytest.mark.parametrize("channels", CHANNELS)
def test_adaptive_avg_pool2d_matches_torch(channels: int, out: tuple[int, int]) -> None:
    x = torch.randn(2, channels, 9, 12)
    plan = PlanBuilder()
    _, wide, pooled = _through_wide(plan, channels, (9, 12), out)
    plan.step(ADAPTIVE_AVG_POOL2D, wide, pooled)
    plan.step(COPY, pooled, plan.output(channels, *out))
    check_plan(plan.make(), [x], [F.adaptive_avg_pool2d(x.double(), out)], 108)


def test_max_pool2d_keeps_nan_and_dilates() -> None:
    x = torch.randn(2, 5, 9, 12)
    x[0, 0, 4, 4] = float("nan")
    wanted = F.max_pool2d(x, 3, 1, 1, dilation=2)
    plan = PlanBuilder()
    source, out = plan.input(5, 9, 12), plan.output(5, *wanted.shape[2:])
    plan.step(MAX_POOL2D, source, out, 3, 3, 1, 1, 1, 1, 2, 2, 0)
    assert torch.equal(plan.make().run([x])[0].nan_to_num(7), wanted.nan_to_num(7))


@pytest.mark.parametrize("activation", [NONE, RELU, RELU6, SIGMOID])
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
        check_plan(plan.make(), [x], [wanted, wanted], c * h * w)


def test_linear_reads_a_strided_vector() -> None:
    x, weight = torch.randn(3, 20)[:, ::2], torch.randn(6, 10)
    for batch in (1, 3):
        plan = PlanBuilder()
        plan.linear(plan.input(10), plan.output(6), weight)
        check_plan(plan.make(), [x[:batch]], [F.linear(x[:batch].double(), weight.double())], 10)


@pytest.mark.parametrize("capability", capabilities())
@pytest.mark.parametrize("channels", [*CHANNELS, 1500])
def test_rows_match_torch(channels: int, capability: str) -> None:
    size = (channels, 5, 6)
    for batch in (1, 3):
        a, b = torch.randn(batch, *size), torch.randn(batch, *size)
        scale, shift = torch.randn(channels), torch.randn(channels)
        scaled = a.double() * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)
        for activation in range(len(ACTIVATIONS)):
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
                check_plan(plan.make(), [a, b], wanted, 4)


@pytest.mark.parametrize("capability", capabilities())
@pytest.mark.parametrize("channels", CHANNELS)
def test_scale_images_matches_torch(channels: int, capability: str) -> None:
    for batch in (0, 1, 3):
        x, factors = torch.randn(batch, channels, 5, 6), torch.randn(batch, channels)
        plan = PlanBuilder()
        image, given = plan.input(channels, 5, 6), plan.input(channels)
        wide = plan.inside(channels, 5, 6, pitch=channels + 9, first=4)
        pixel = plan.inside(channels, 1, 1, pitch=channels + 2, first=1)
        plan.step(COPY, image, wide)
        plan.step(COPY, given, pixel)
        plan.step(SCALE_IMAGES, wide, pixel, wide)  # in place
        plan.step(COPY, wide, plan.output(channels, 5, 6))
        plan.step(SCALE_IMAGES, image, given, plan.output(channels, 5, 6))
        wanted = x.double() * factors.double()[:, :, None, None]
        with backends.cpu_capability(capability):
            check_plan(plan.make(), [x, factors], [wanted, wanted], 1)


@pytest.mark.parametrize("capability", capabilities())
@pytest.mark.parametrize("activation", range(len(ACTIVATIONS)))
def test_activations_keep_their_range_and_nan(activation: int, capability: str) -> None:
    values = torch.cat([torch.linspace(-120, 120, 4801), torch.tensor([torch.inf, torch.nan, 1e30, -1e30, 0])])
    plan = PlanBuilder()
    plan.step(ACTIVATION, plan.input(1), plan.output(1), activation)
    with backends.cpu_capability(capability):
        (got,) = plan.make().run([values[:, None]])
    wanted = activate(values.double(), activation)[:, None]
    assert torch.equal(got.isnan(), wanted.isnan())
    got, wanted = got[wanted.isfinite()], wanted[wanted.isfinite()]
    assert ((got - wanted).abs() <= 4 * torch.finfo(torch.float32).eps * wanted.abs() + 2e-36).all()
