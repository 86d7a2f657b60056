"""The step of a depthwise layer and the 1x1 layers around it against torch in float64, and its checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conditions import LAYOUTS, with_layout
from kernels import capabilities, recorded
from plans import ACTIVATION, COPY, HARD_SWISH, NONE, RELU, RELU6, SILU, PlanBuilder, activate, check_plan
from threads import run_in_threads
from torch import Tensor
from torch.nn import functional as F

from fastcnn import backends

Layers = list[tuple[Tensor, Tensor | None, int] | None]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


@dataclass(frozen=True)
class Block:
    """Sizes of one step; `expands` and `projects` say which of the 1x1 layers it has."""

    c: int = 16
    hidden: int = 96
    k: int = 24
    size: tuple[int, int] = (12, 10)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    expands: bool = True
    projects: bool = True
    residual: bool = False
    activations: tuple[int, int, int] = (RELU6, RELU6, NONE)
    bias: bool = True

    @property
    def inputs(self) -> tuple[int, int, int]:
        return (self.c if self.expands else self.hidden, *self.size)

    @property
    def windows(self) -> dict[str, tuple[int, int]]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def layers(self) -> Layers:
        """Random weights of each layer that it has."""

        def layer(activation: int, *sizes: int) -> tuple[Tensor, Tensor | None, int]:
            weight = torch.randn(*sizes) * 2 * (sizes[1] * sizes[2] * sizes[3]) ** -0.5
            return weight, torch.randn(sizes[0]) if self.bias else None, activation

        first, middle, last = self.activations
        return [
            layer(first, self.hidden, self.c, 1, 1) if self.expands else None,
            layer(middle, self.hidden, 1, *self.kernel),
            layer(last, self.k, self.hidden, 1, 1) if self.projects else None,
        ]

    def expected(self, x: Tensor, layers: Layers, residual: Tensor | None) -> Tensor:
        """The same layer by layer in float64."""
        result = x.double()
        for place, layer in enumerate(layers):
            if layer is None:
                continue
            weight, bias, activation = layer
            windows = {**self.windows, "groups": self.hidden} if place == 1 else {}
            result = F.conv2d(result, weight.double(), None if bias is None else bias.double(), **windows)
            if place == 2 and residual is not None:
                result = result + residual.double()
            result = activate(result, activation)
        return result


# Of images of (50, 40) a band is some 17 rows.
BLOCKS = {
    "small": Block(),
    "residual": Block(c=24, residual=True, activations=(RELU, RELU, RELU)),
    "bands": Block(size=(50, 40)),
    "bands with a residual": Block(c=24, size=(50, 40), residual=True, activations=(SILU, SILU, NONE)),
    "strided bands": Block(size=(51, 39), stride=(2, 2)),
    "uneven strides": Block(size=(50, 40), stride=(1, 2), kernel=(3, 5), padding=(1, 2)),
    "kernel of 5": Block(size=(53, 40), kernel=(5, 5), padding=(2, 2), activations=(HARD_SWISH, HARD_SWISH, NONE)),
    "no padding": Block(size=(50, 40), padding=(0, 0)),
    "more padding": Block(size=(50, 40), padding=(2, 2)),
    "dilated": Block(size=(50, 40), padding=(2, 3), dilation=(2, 3)),
    "windows apart": Block(size=(100, 40), kernel=(1, 1), padding=(0, 0), stride=(3, 3)),
    "no expansion": Block(hidden=128, size=(50, 40), expands=False),
    "no expansion, strided": Block(hidden=40, size=(20, 30), expands=False, stride=(2, 2)),
    "no projection": Block(size=(50, 40), projects=False, stride=(2, 2)),
    "no bias": Block(size=(50, 40), bias=False),
    "odd channels": Block(c=7, hidden=35, k=19, size=(90, 60)),
    "few channels": Block(c=3, hidden=5, k=2),
    "one row": Block(size=(1, 40)),
    "one column": Block(size=(60, 1)),
    "many channels": Block(c=8, hidden=700, k=8, size=(30, 30)),
}


def _plan(block: Block, layers: Layers, out: tuple[int, ...]) -> PlanBuilder:
    plan = PlanBuilder()
    source, addend = plan.input(*block.inputs), plan.input(*out) if block.residual else -1
    plan.inverted_residual(source, plan.output(*out), layers, addend, **block.windows)
    return plan


def _case(block: Block, batch: int, layout: str = "contiguous") -> tuple[Layers, list[Tensor], Tensor]:
    """Layers, inputs of the plan, and what it gives."""
    layers, x = block.layers(), with_layout(torch.randn(batch, *block.inputs), layout)
    out = block.expected(x, layers, None).shape
    added = torch.randn(out) if block.residual else None
    return layers, [x] if added is None else [x, added], block.expected(x, layers, added)


def _terms(block: Block) -> int:
    """Each layer adds its own rounding to those before."""
    return 4 * (block.c + block.hidden + block.kernel[0] * block.kernel[1])


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_inverted_residual_matches_torch(name: str, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    for layout in LAYOUTS:
        layers, inputs, wanted = _case(BLOCKS[name], batch, layout)
        check_plan(_plan(BLOCKS[name], layers, wanted.shape[1:]).make(), inputs, [wanted], _terms(BLOCKS[name]))


@pytest.mark.parametrize("capability", capabilities())
@pytest.mark.parametrize("name", BLOCKS)
def test_inverted_residual_matches_torch_with_each_instruction_set(name: str, capability: str) -> None:
    layers, inputs, wanted = _case(BLOCKS[name], 2, "channels_last")
    with backends.cpu_capability(capability):
        check_plan(_plan(BLOCKS[name], layers, wanted.shape[1:]).make(), inputs, [wanted], _terms(BLOCKS[name]))


@pytest.mark.parametrize("name", BLOCKS)
def test_inverted_residual_gives_the_bits_of_its_layers(name: str) -> None:
    """Whatever the bands: of any batch and number of threads, and of the three convolutions one by one."""
    block = BLOCKS[name]
    layers, inputs, wanted = _case(block, 4)
    made = _plan(block, layers, wanted.shape[1:]).make()

    plan = PlanBuilder()
    last, addend = plan.input(*block.inputs), plan.input(*wanted.shape[1:]) if block.residual else -1
    present = [place for place in range(3) if layers[place] is not None]
    for place in present:
        weight, bias, activation = layers[place] or (torch.empty(0), None, NONE)
        shape = wanted.shape[1:] if place == 2 else (block.hidden, *(block.size if place == 0 else wanted.shape[2:]))
        out = plan.output(*shape) if place == present[-1] else plan.inside(*shape)
        windows: dict[str, Any] = {**block.windows, "groups": block.hidden} if place == 1 else {}
        plan.conv2d(last, out, weight, bias, addend if place == 2 else -1, activation, **windows)
        last = out
    with backends.conv2d_algorithm("direct"):
        (by_layers,) = plan.make().run(inputs)

    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        assert torch.equal(made.run(inputs)[0], by_layers)
        for n in range(4):
            assert torch.equal(made.run([x[n : n + 1] for x in inputs])[0], by_layers[n : n + 1])


def test_inverted_residual_keeps_to_its_channels_and_adds_in_place() -> None:
    block = replace(BLOCKS["bands with a residual"], activations=(RELU, RELU, HARD_SWISH))
    layers, (x, added), wanted = _case(block, 2)
    c, k, (h, w) = block.c, block.k, block.size
    plan, pitch = PlanBuilder(), block.k + 22
    source, addend, left, right = (plan.input(channels, h, w) for channels in (c, k, 13, 9))
    wide_in, wide_out = plan.inside(c + 30, h, w), plan.inside(pitch, h, w)
    part_in = plan.inside(c, h, w, pitch=c + 30, first=9, at=wide_in)
    part_out = plan.inside(k, h, w, pitch=pitch, first=13, at=wide_out)
    before = plan.inside(13, h, w, pitch=pitch, at=wide_out)
    behind = plan.inside(9, h, w, pitch=pitch, first=13 + k, at=wide_out)
    for value, place in ((source, part_in), (addend, part_out), (left, before), (right, behind)):
        plan.step(COPY, value, place)
    plan.inverted_residual(part_in, part_out, layers, part_out, **block.windows)
    plan.step(COPY, wide_out, plan.output(pitch, h, w))
    around = [torch.randn(2, 13, h, w), torch.randn(2, 9, h, w)]
    expected = torch.cat([around[0].double(), wanted, around[1].double()], 1)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        check_plan(plan.make(), [x, added, *around], [expected], _terms(block))


@pytest.mark.parametrize("name", ["bands", "kernel of 5", "no expansion", "residual"])
def test_inverted_residual_keeps_nan_where_torch_has_it(name: str) -> None:
    block = BLOCKS[name]
    layers, inputs, _ = _case(block, 2)
    inputs[0][0, 3, block.size[0] // 2, 4] = torch.nan
    inputs[0][1, 2, 0, 0] = torch.nan
    wanted = block.expected(inputs[0], layers, inputs[1] if block.residual else None)
    (got,) = _plan(block, layers, wanted.shape[1:]).make().run(inputs)
    assert wanted.isnan().any() and not wanted.isnan().all()
    torch.testing.assert_close(got.double(), wanted, equal_nan=True, rtol=1e-4, atol=1e-3)


def test_inverted_residual_is_made_ready_anew_where_a_call_differs_from_the_one_before() -> None:
    block = BLOCKS["bands with a residual"]
    layers = block.layers()
    made = _plan(block, layers, (block.k, *block.size)).make()

    def run(batch: int, layout: str, wide: int) -> None:
        x = with_layout(torch.randn(batch, *block.inputs), layout)
        added = torch.randn(batch, block.k + wide, *block.size).to(memory_format=torch.channels_last)[:, wide:]
        check_plan(made, [x, added], [block.expected(x, layers, added)], _terms(block))

    # What changes from one call to the next is only one of these.
    for batch in (2, 1):
        for layout in LAYOUTS:
            for wide in (0, 5):
                run(batch, layout, wide)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        run(1, "strided", 5)
    with backends.cpu_capability("baseline"):
        run(1, "strided", 5)


def test_threads_may_share_an_inverted_residual() -> None:
    block = BLOCKS["strided bands"]
    layers, _, wanted = _case(block, 1)
    made = _plan(block, layers, wanted.shape[1:]).make()

    def work(seed: int) -> None:
        torch.set_num_threads(2)
        generator = torch.Generator().manual_seed(seed)
        for batch in (1, 4, 3):
            x = torch.randn(batch, *block.inputs, generator=generator)
            check_plan(made, [x], [block.expected(x, layers, None)], _terms(block))

    run_in_threads(work, 5)


def test_inverted_residual_says_what_runs() -> None:
    layers, inputs, wanted = _case(BLOCKS["bands"], 1)
    made = _plan(BLOCKS["bands"], layers, wanted.shape[1:]).make()
    (line,) = made.describe()
    assert line == (
        "inverted_residual 16 @ 50x40 -> 96 -> 24 @ 50x40, 3x3, relu6: conv2d_depthwise and conv2d_direct by bands of "
        "16 rows"
    )
    assert recorded(lambda: made.run(inputs)) == ["conv2d_direct", "conv2d_depthwise", "conv2d_direct"]


def test_inverted_residual_takes_few_bands_where_each_would_be_another() -> None:
    """Windows that reach out of the image make a form of each band: as many as rows are no use and much memory."""
    block = Block(c=1, hidden=2, k=1, size=(1, 70000), kernel=(2, 1), padding=(80, 0), dilation=(81, 1))
    layers, inputs, wanted = _case(block, 1)
    made = _plan(block, layers, wanted.shape[1:]).make()
    check_plan(made, inputs, [wanted], _terms(block))
    assert wanted.shape == (1, 1, 80, 70000) and "by bands of 80 rows" in made.describe()[0]


def test_inverted_residual_counts_bands_of_large_strides() -> None:
    """2^20 rows between windows times 2^44 floats a row would be 0 in 64 bits."""
    plan, side, channels = PlanBuilder(), 2**20, 2**24
    weight = torch.zeros(1).expand(channels, 1, 1, 1)
    layers: Layers = [(weight, None, NONE), (weight, None, NONE), None]
    plan.inverted_residual(plan.input(1, 1, side), plan.output(channels, 1, 1), layers, stride=(side, side))
    assert "by bands of 1 rows" in plan.make().describe()[0]


def _valid() -> PlanBuilder:
    plan = PlanBuilder()
    x, added, hidden, out = plan.input(4, 8, 8), plan.input(5, 8, 8), plan.inside(5, 8, 8), plan.output(5, 8, 8)
    layers: Layers = [
        (torch.randn(6, 4, 1, 1), torch.randn(6), RELU),
        (torch.randn(6, 1, 3, 3), torch.randn(6), RELU),
        (torch.randn(5, 6, 1, 1), torch.randn(5), NONE),
    ]
    plan.inverted_residual(x, hidden, layers, added, padding=(1, 1))
    plan.step(ACTIVATION, hidden, out, RELU)
    return plan


def _changed(**fields: int) -> PlanBuilder:
    names = ["in", "out", "residual", "expand_weight", "expand_bias", "expand_activation", "weight", "bias",
             "activation", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "project_weight",
             "project_bias", "project_activation"]  # fmt: skip
    plan = _valid()
    for name, value in fields.items():
        plan.steps[0][1 + names.index(name.rstrip("_"))] = value
    return plan


def _with_constant(number: int, new: Tensor) -> PlanBuilder:
    plan = _valid()
    plan.constants[number] = new
    return plan


BAD: dict[str, tuple[Any, list[str]]] = {
    "no weight": (lambda: _changed(weight=-1, bias=-1, activation=NONE), ["weight", "none"]),
    "flat weight": (lambda: _with_constant(2, torch.randn(54)), ["four dimensions"]),
    "weight": (lambda: _with_constant(2, torch.randn(6, 2, 3, 3)), ["[6, 1, 3, 3]", "[6, 2, 3, 3]"]),
    "empty weight": (lambda: _with_constant(2, torch.randn(6, 1, 0, 3)), ["four dimensions"]),
    "one channel": (lambda: _with_constant(2, torch.randn(1, 1, 3, 3)), ["several channels", "1"]),
    "bias": (lambda: _with_constant(3, torch.randn(5)), ["bias", "[6]", "[5]"]),
    "expand_weight": (lambda: _with_constant(0, torch.randn(6, 3, 1, 1)), ["expand_weight", "[6, 4, 1, 1]"]),
    "expand_weight of 3x3": (lambda: _with_constant(0, torch.randn(6, 4, 3, 3)), ["expand_weight", "[6, 4, 1, 1]"]),
    "expand_bias": (lambda: _with_constant(1, torch.randn(4)), ["expand_bias", "[6]", "[4]"]),
    "expand_bias alone": (lambda: _changed(expand_weight=-1, expand_activation=NONE), ["neither expand_bias"]),
    "expand_activation alone": (lambda: _changed(expand_weight=-1, expand_bias=-1), ["expand_weight"]),
    "input of other channels": (
        lambda: _changed(expand_weight=-1, expand_bias=-1, expand_activation=NONE),
        ["expected 6 channels", "value 0 of 4"],
    ),
    "output of other channels": (
        lambda: _changed(project_weight=-1, project_bias=-1, residual=-1),
        ["expected 6 channels", "value 2 of 5"],
    ),
    "neither": (
        lambda: _changed(expand_weight=-1, expand_bias=-1, expand_activation=NONE, project_weight=-1, project_bias=-1),
        ["expand_weight or project_weight"],
    ),
    "project_weight": (lambda: _with_constant(4, torch.randn(5, 5, 1, 1)), ["project_weight", "[5, 6, 1, 1]"]),
    "project_bias": (lambda: _with_constant(5, torch.randn(6)), ["project_bias", "[5]", "[6]"]),
    "residual shape": (lambda: _changed(residual=0), ["channels", "4", "5"]),
    "residual": (lambda: _changed(residual=9), ["residual", "9"]),
    "activation": (lambda: _changed(project_activation=7), ["activation", "7"]),
    "stride": (lambda: _changed(stride_h=0), ["stride_h", "0"]),
    "output size": (lambda: _changed(stride_h=2), ["4 x 8", "8 x 8"]),
    "padding": (lambda: _changed(pad_h=-1), ["pad_h", "-1"]),
    "huge padding": (lambda: _changed(pad_w=2**40), ["pad_w", str(2**40)]),
    "windows in the padding": (lambda: _changed(pad_h=5, stride_h=2), ["reach into the image", "5"]),
    "dilation": (lambda: _changed(dilation_w=2**40), ["dilation_w", str(2**40)]),
    "extent": (lambda: _changed(dilation_h=2**20), ["extent", str(2**20)]),
    "output over the input": (lambda: _in_place(), ["overlap"]),
}


def _in_place() -> PlanBuilder:
    plan = PlanBuilder()
    x, hidden, out = plan.input(6, 8, 8), plan.inside(6, 8, 8), plan.output(6, 8, 8)
    plan.step(COPY, x, hidden)
    layers: Layers = [None, (torch.randn(6, 1, 3, 3), None, NONE), (torch.randn(6, 6, 1, 1), None, NONE)]
    plan.inverted_residual(hidden, hidden, layers, padding=(1, 1))
    plan.step(COPY, hidden, out)
    return plan


@pytest.mark.parametrize("name", BAD)
def test_bad_inverted_residual_is_refused(name: str) -> None:
    make, words = BAD[name]
    with pytest.raises(RuntimeError) as error:
        make().make()
    for word in ["fastcnn plan", "inverted_residual", *words]:
        assert word in str(error.value)


def test_valid_inverted_residual_is_taken() -> None:
    assert len(_valid().make().run([torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8)])) == 1
