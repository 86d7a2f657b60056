from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conditions import (
    HALF,
    LAYOUTS,
    assert_conditions,
    assert_raises_like,
    generate,
    relative_error,
    tolerance,
)
from conv2d_samples import SAMPLES, tensors
from kernels import capabilities, recorded
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
from fastcnn.ops import conv2d


@pytest.fixture(autouse=True)
def direct_kernels() -> Iterator[None]:
    """test_conv2d_winograd.py has the other algorithms, and the choice among them."""
    with fastcnn.backends.conv2d_algorithm("direct"):
        yield


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SAMPLES)
def test_conv2d_values(name: str, dtype: torch.dtype, layout: str) -> None:
    input, weight, bias, options = tensors(SAMPLES[name], dtype, layout)
    expected = F.conv2d(input.double(), weight.double(), bias.double(), **options)
    terms = weight[0].numel()
    with fastcnn.backends.fallback(False):
        for activation in (None, "relu"):
            output = conv2d(input, weight, bias, **options, activation=activation)
            wanted = expected if activation is None else F.relu(expected)
            assert output.dtype == dtype
            assert relative_error(output, wanted) <= tolerance(terms, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
@pytest.mark.parametrize("name", SAMPLES)
def test_conv2d_gradients(name: str, dtype: torch.dtype, layout: str) -> None:
    sample = SAMPLES[name]
    input, weight, bias, options = tensors(sample, dtype, layout, grad=True)
    exact = [t.detach().double().requires_grad_() for t in (input, weight, bias)]
    expected = F.conv2d(*exact, **options)
    grad_output = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    wanted = torch.autograd.grad(expected, exact, grad_output.double())
    with fastcnn.backends.fallback(False):
        got = torch.autograd.grad(conv2d(input, weight, bias, **options), (input, weight, bias), grad_output)
    pixels = expected.shape[0] * expected.shape[2] * expected.shape[3]
    for g, w, terms in zip(got, wanted, (sample["k"] * math.prod(sample["kernel"]), pixels, pixels), strict=True):
        assert g.dtype == dtype
        assert relative_error(g, w) <= tolerance(terms, dtype)


def test_conv2d_relu_gradient_masks_what_relu_cut() -> None:
    input, weight, bias, options = tensors(SAMPLES["three"], torch.float64, grad=True)
    wanted = torch.autograd.grad(F.relu(F.conv2d(input, weight, bias, **options)).square().sum(), (input, weight, bias))
    got = torch.autograd.grad(
        conv2d(input, weight, bias, **options, activation="relu").square().sum(), (input, weight, bias)
    )
    for g, w in zip(got, wanted, strict=True):
        assert relative_error(g, w) < 1e-12


@pytest.mark.parametrize("level", capabilities())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_conv2d_few_output_channels(dtype: torch.dtype, level: str) -> None:
    # Widths straddle the registers, heights the chunks; channels are all that the planar kernels take.
    kernels: set[str] = set()
    for k, width in enumerate((30, 14, 31, 32, 33, 47, 49, 15), start=1):
        sample = dict(n=2, c=1 + k % 3, k=k, size=(35, width), kernel=(3, 2), padding=(k % 2, k % 3))
        input, weight, bias, options = tensors(sample, dtype, LAYOUTS[k % len(LAYOUTS)])
        wide, narrow = input.double(), weight.double().requires_grad_()
        expected = F.conv2d(wide, narrow, bias.double(), **options)
        grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64).to(dtype)
        (wanted,) = torch.autograd.grad(expected, narrow, grad.double())
        got: list[torch.Tensor] = []

        def call(made: Any = (input, weight, bias), o: Any = options, g: Any = grad, to: Any = got) -> None:
            to.append(conv2d(made[0], made[1].requires_grad_(), made[2], **o))
            to.extend(torch.autograd.grad(to[0], made[1], g))

        with fastcnn.backends.cpu_capability(level):
            kernels |= set(recorded(call))
        assert relative_error(got[0].detach(), expected.detach()) <= tolerance(weight[0].numel(), dtype), k
        assert relative_error(got[1], wanted) <= tolerance(grad[:, 0].numel(), dtype), k
    assert "conv2d_planar_grad_weight" in kernels


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_conv2d_weight_gradient_of_few_output_channels_keeps_nan_and_infinity_to_their_taps(value: float) -> None:
    for column in (0, 1, 17, 19):
        input = torch.randn(1, 1, 12, 20, generator=torch.Generator().manual_seed(column))
        input[0, 0, 5, column] = value
        weight = torch.randn(2, 1, 3, 3, requires_grad=True)
        (got,) = torch.autograd.grad(conv2d(input, weight).sum(), weight)
        (wanted,) = torch.autograd.grad(F.conv2d(input, weight).sum(), weight)
        assert torch.equal(got.isfinite(), wanted.isfinite()), column


def make_config(rng: random.Random) -> dict[str, Any]:
    """A tiny convolution, drawn so that every named condition is frequent."""
    groups = rng.choice([1, 1, 1, 2, 3])
    kernel = (rng.randint(1, 3), rng.randint(1, 3))
    depthwise = rng.random() < 0.15
    return dict(
        n=rng.randint(1, 2),
        c=3 if depthwise else groups * rng.randint(1, 2),
        k=3 if depthwise else groups * rng.randint(1, 2),
        groups=3 if depthwise else groups,
        kernel=kernel,
        size=(rng.randint(3, 5), rng.randint(3, 5)),
        stride=(rng.randint(1, 3), rng.randint(1, 2)),
        padding=(rng.randint(0, 2), rng.randint(0, 2)),
        dilation=(rng.randint(1, 2) if kernel[0] < 3 else 1, rng.randint(1, 2) if kernel[1] < 3 else 1),
        layout=rng.choice(LAYOUTS),
        activation=rng.choice([None, None, "relu"]),
        bias=rng.random() < 0.7,
    )


CONFIGS = generate(make_config, 320)
CONDITIONS = {
    "stride": lambda c: max(c["stride"]) > 1,
    "padding": lambda c: max(c["padding"]) > 0,
    "dilation": lambda c: max(c["dilation"]) > 1,
    "groups": lambda c: c["groups"] > 1,
    "depthwise": lambda c: c["groups"] == c["c"] == c["k"] > 1,
    "contiguous": lambda c: c["layout"] == "contiguous",
    "channels_last": lambda c: c["layout"] == "channels_last",
    "strided view": lambda c: c["layout"] == "strided",
    "relu": lambda c: c["activation"] == "relu",
    "no bias": lambda c: not c["bias"],
}


def test_conv2d_configurations_cover_conditions() -> None:
    assert len(CONFIGS) >= 300
    assert_conditions(CONFIGS, CONDITIONS)


@pytest.mark.parametrize("part", range(8))
def test_conv2d_gradcheck(part: int) -> None:
    with fastcnn.backends.fallback(False):
        for config in CONFIGS[part::8]:
            input, weight, bias, options = tensors(config, torch.float64, config["layout"], grad=True)
            inputs = (input, weight, bias) if config["bias"] else (input, weight)

            def call(
                input: Any, weight: Any, bias: Any = None, options: Any = options, config: Any = config
            ) -> torch.Tensor:
                return conv2d(input, weight, bias, **options, activation=config["activation"])

            assert gradcheck(call, inputs, fast_mode=True), config
            assert gradgradcheck(call, inputs, fast_mode=True), config


@pytest.mark.parametrize("name", ["three", "uneven", "grouped", "depthwise", "no_images"])
def test_conv2d_opcheck(name: str) -> None:
    input, weight, bias, options = tensors(SAMPLES[name], grad=True)
    pairs = {key: [value] * 2 if isinstance(value, int) else list(value) for key, value in options.items()}
    groups = options.get("groups", 1)
    args = [pairs.get("stride", [1, 1]), pairs.get("padding", [0, 0]), pairs.get("dilation", [1, 1]), groups]
    for activation in (None, "relu"):
        torch.library.opcheck(torch.ops.fastcnn.conv2d.default, (input, weight, bias, *args, activation))
    nhwc = input.detach().to(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(torch.ops.fastcnn.conv2d.default, (nhwc, weight, bias, *args))
    grad_output = torch.randn_like(conv2d(input, weight, bias, **options)).detach().requires_grad_()
    for mask in ([True, True, True], [False, True, False]):
        torch.library.opcheck(torch.ops.fastcnn.conv2d_backward.default, (grad_output, input, weight, *args, mask))
    activated = torch.ops.fastcnn._relu_mask(conv2d(input, weight, bias, **options, activation="relu").detach())
    backward_args = (grad_output, input, weight, *args, [True] * 3, activated)
    torch.library.opcheck(torch.ops.fastcnn.conv2d_backward.default, backward_args)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3), (4, 3), (2, 5)])
def test_conv2d_string_padding(padding: str, kernel: tuple[int, int]) -> None:
    input, weight = torch.randn(2, 3, 9, 11), torch.randn(4, 3, *kernel)
    expected = F.conv2d(input, weight, padding=padding, dilation=(1, 2))
    torch.testing.assert_close(conv2d(input, weight, padding=padding, dilation=(1, 2)), expected)


def test_conv2d_unbatched_input_as_torch() -> None:
    input, weight = torch.randn(3, 9, 8), torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(conv2d(input, weight, padding=1), F.conv2d(input, weight, padding=1))


def test_conv2d_output_is_channels_last_if_input_or_weight_is() -> None:
    input, weight = torch.randn(2, 3, 9, 8), torch.randn(4, 3, 3, 3)
    nhwc = torch.channels_last
    assert conv2d(input, weight).is_contiguous()
    assert conv2d(input.to(memory_format=nhwc), weight).is_contiguous(memory_format=nhwc)
    assert conv2d(input, weight.to(memory_format=nhwc)).is_contiguous(memory_format=nhwc)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "no_images"])
def test_conv2d_result_depends_on_neither_threads_nor_batch(name: str) -> None:
    input, weight, bias, options = tensors({**SAMPLES[name], "n": 5}, grad=True)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            output = conv2d(input, weight, bias, **options)
            results.append((output, *torch.autograd.grad(output.sin().sum(), (input, weight, bias))))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            assert torch.equal(a, b)
    alone = torch.cat([conv2d(input[i : i + 1], weight, bias, **options) for i in range(5)])
    assert torch.equal(results[0][0], alone)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("name", ["three", "one_by_one", "depthwise", "stem_strided"])
def test_conv2d_keeps_nan_and_infinity_where_torch_does(name: str, dtype: torch.dtype, value: float) -> None:
    input, weight, bias, options = tensors(SAMPLES[name], dtype)
    input[0, 0, 2, 3] = value
    for activation in (None, "relu"):
        expected = F.conv2d(input.float(), weight.float(), bias.float(), **options)
        expected = expected if activation is None else F.relu(expected)
        output = conv2d(input, weight, bias, **options, activation=activation)
        assert torch.equal(output.isnan(), expected.isnan())
        assert torch.equal(output.isposinf(), expected.isposinf())
        assert torch.equal(output.isneginf(), expected.isneginf())


def bad_calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any], tuple[str, ...]]]:
    input, weight = torch.randn(2, 4, 6, 6), torch.randn(8, 4, 3, 3)
    return {
        "rank of input": ((torch.randn(4, 6), weight), {}, ("3D (unbatched) or 4D (batched)",)),
        "rank of weight": ((input, torch.randn(8, 4, 3)), {}, ()),
        "channels": ((input, torch.randn(8, 3, 3, 3)), {}, ("to have 3 channels", "got 4 channels")),
        "kernel too large": ((input, torch.randn(8, 4, 7, 3)), {}, ("Kernel size", "can't be greater than")),
        "dilated kernel too large": ((input, weight), dict(dilation=3), ("Kernel size", "can't be greater than")),
        "zero stride": ((input, weight), dict(stride=0), ("non-positive stride",)),
        "negative stride": ((input, weight), dict(stride=(1, -2)), ("non-positive stride",)),
        "negative padding": ((input, weight), dict(padding=-1), ("negative padding",)),
        "zero dilation": ((input, weight), dict(dilation=0), ("non-positive dilation",)),
        "zero groups": ((input, weight), dict(groups=0), ("non-positive groups",)),
        "groups of outputs": ((input, torch.randn(9, 2, 3, 3)), dict(groups=2), ("divisible by", "dimension 0")),
        "groups of inputs": ((input, torch.randn(9, 1, 3, 3)), dict(groups=3), ("channels",)),
        "bias": ((input, weight, torch.randn(7)), {}, ("bias", "8 elements")),
        "dtypes": ((input, weight.double()), {}, ("type", "same")),
        "bias dtype": ((input, weight, torch.randn(8).double()), {}, ("type", "same")),
        "three strides": ((input, weight), dict(stride=(1, 1, 1)), ("stride",)),
        "padding name": ((input, weight), dict(padding="full"), ("padding",)),
        "same with stride": ((input, weight), dict(padding="same", stride=2), ("padding='same'", "strided")),
        "empty spatial input": ((torch.randn(2, 4, 0, 6), weight), {}, ("Kernel size",)),
        "not a tensor": (([1.0], weight), {}, ()),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_conv2d_bad_input_raises_as_torch(name: str) -> None:
    args, kwargs, words = bad_calls()[name]
    assert_raises_like(lambda: conv2d(*args, **kwargs), lambda: F.conv2d(*args, **kwargs), *words)


def test_conv2d_overflowing_sizes_raise() -> None:
    input, weight = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 2, 2)
    for kwargs in (dict(padding=2**62), dict(dilation=2**62), dict(padding=(2**31, 2**31))):
        with pytest.raises(RuntimeError):
            conv2d(input, weight, **kwargs)


def test_conv2d_unknown_activation_raises() -> None:
    with pytest.raises(ValueError, match="'gelu'"):
        conv2d(torch.randn(1, 1, 3, 3), torch.randn(1, 1, 1, 1), activation="gelu")


def test_conv2d_takes_torchs_own_op_where_ours_cannot_follow() -> None:
    input, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    expected = F.conv2d(input, weight)

    class Subclass(torch.Tensor):
        pass

    def jvp() -> torch.Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(conv2d(forward_ad.make_dual(input, input), weight)).tangent

    calls = {
        "vmap": lambda: torch.vmap(lambda x: conv2d(x.unsqueeze(0), weight))(input).squeeze(1),
        "functional grad": lambda: torch.func.vjp(lambda x: conv2d(x, weight), input)[0],
        "forward mode": jvp,
        "subclass": lambda: conv2d(input.as_subclass(Subclass), weight).as_subclass(torch.Tensor),
        "complex": lambda: conv2d(input.to(torch.complex64), weight.to(torch.complex64)).real,
    }
    for name, call in calls.items():
        torch.testing.assert_close(call(), expected, msg=lambda m, name=name: f"{name}: {m}")
        with fastcnn.backends.fallback(False), pytest.raises(NotImplementedError, match="fallback"):
            call()
    integers = torch.randint(-9, 9, (1, 2, 5, 5)), torch.randint(-9, 9, (3, 2, 3, 3))
    assert torch.equal(conv2d(*integers), F.conv2d(*integers))
    assert conv2d(input.to("meta"), weight.to("meta")).shape == expected.shape


def test_conv2d_backward_keeps_the_forwards_switches() -> None:
    input = torch.randn(1, 2, 4, 4, requires_grad=True)
    output = conv2d(input, torch.randn(3, 2, 3, 3))
    with fastcnn.backends.fallback(False):
        output.sum().backward()
        assert not fastcnn.backends.fallback_enabled()
    assert fastcnn.backends.fallback_enabled()


def test_conv2d_autocast_computes_in_lower_precision() -> None:
    input, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = conv2d(input, weight)
        expected = F.conv2d(input, weight)
    assert output.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=0.02, atol=0.02)
    output.sum().backward()
    assert input.grad is not None and input.grad.dtype == torch.float32


def test_conv2d_flop_count_as_torch() -> None:
    def count(function: Any) -> int:
        input, weight = torch.randn(2, 4, 9, 9, requires_grad=True), torch.randn(6, 2, 3, 3, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            function(input, weight, stride=2, padding=1, groups=2).sum().backward()
        return int(counter.get_total_flops())

    assert count(conv2d) == count(F.conv2d) > 0


def test_conv2d_compiles_without_a_graph_break() -> None:
    weight, bias = torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)

    def step(input: torch.Tensor) -> torch.Tensor:
        return conv2d(input, weight, bias, padding=1, activation="relu").square()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (2, 3):
        input = torch.randn(n, 3, 8, 8)
        wanted = torch.autograd.grad(step(input).sum(), (weight, bias))
        got = torch.autograd.grad(compiled(input).sum(), (weight, bias))
        torch.testing.assert_close(got, wanted)


def test_conv2d_no_gradient_asked_for_none_computed() -> None:
    input, weight = torch.randn(2, 8, 6, 6), torch.randn(8, 8, 3, 3, requires_grad=True)
    output = conv2d(input, weight, padding=1)
    assert recorded(lambda: output.sum().backward()) == ["conv2d_grad_weight"]


def test_conv2d_expanded_gradient() -> None:
    input, weight = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3)
    (got,) = torch.autograd.grad(conv2d(input, weight).sum(), input)
    (wanted,) = torch.autograd.grad(F.conv2d(input, weight).sum(), input)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("channels", [3, 16, 21])
def test_conv2d_gradients_of_a_part_of_a_larger_gradient(channels: int, activation: str | None) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, 5, 6, 7).double(), torch.randn(channels, 5, 3, 3).double(), torch.randn(channels).double()]
    exact = [t.requires_grad_() for t in exact]
    expected = F.conv2d(*exact, padding=1)
    expected = expected if activation is None else expected.relu()
    whole = torch.randn(2, channels + 9, 6, 7).to(memory_format=torch.channels_last)
    part = whole.narrow(1, 4, channels)  # what the backward of a concatenation gives
    tensors = [t.detach().float().requires_grad_() for t in exact]
    output = conv2d(*tensors, padding=1, activation=activation)
    wanted = torch.autograd.grad(expected, exact, part.double())
    for g, w in zip(torch.autograd.grad(output, tensors, part), wanted, strict=True):
        assert relative_error(g, w) < 1e-5
