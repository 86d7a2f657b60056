"""What the tests of the pooling ops share: samples, generated configurations, and checks that hold for all."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conditions import LAYOUTS, with_layout
from torch import Tensor
from torch.autograd import forward_ad

import fastcnn

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# Channels straddle the vector widths of 2, 4, 8 and 16 lanes and blocks of four of them; the windows overlap, touch and
# leave gaps, and lie in the padding.
SAMPLES: dict[str, dict[str, Any]] = {
    "one_channel": dict(n=2, c=1, size=(28, 28), kernel_size=2),
    "lenet": dict(n=3, c=6, size=(10, 10), kernel_size=2, stride=2),
    "alexnet": dict(n=2, c=96, size=(14, 14), kernel_size=3, stride=2),
    "resnet": dict(n=1, c=64, size=(12, 11), kernel_size=3, stride=2, padding=1),
    "inception": dict(n=2, c=17, size=(6, 6), kernel_size=3, stride=1, padding=1),
    "seven": dict(n=2, c=7, size=(9, 8), kernel_size=(3, 2), stride=(2, 3)),
    "eight": dict(n=2, c=8, size=(9, 8), kernel_size=(1, 4), stride=(3, 1), padding=(0, 2)),
    "gaps": dict(n=2, c=9, size=(11, 10), kernel_size=2, stride=(4, 3), padding=(1, 0)),
    "touching": dict(n=1, c=33, size=(9, 10), kernel_size=3),
    "ceil": dict(n=2, c=15, size=(8, 7), kernel_size=3, stride=2, ceil_mode=True),
    "ceil_padded": dict(n=2, c=16, size=(7, 8), kernel_size=(4, 3), stride=(3, 2), padding=(2, 1), ceil_mode=True),
    "ceil_gap": dict(n=1, c=3, size=(7, 5), kernel_size=1, stride=3, ceil_mode=True),
    "whole_image": dict(n=2, c=130, size=(5, 4), kernel_size=(5, 4)),
    "one_pixel": dict(n=2, c=5, size=(1, 1), kernel_size=1),
    "one_pixel_padded": dict(n=2, c=5, size=(1, 1), kernel_size=3, stride=1, padding=1),
    "largest_byte": dict(n=1, c=18, size=(17, 18), kernel_size=16, stride=1, padding=8),
    "no_images": dict(n=0, c=4, size=(5, 5), kernel_size=2),
}


def options(sample: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the op."""
    return {key: value for key, value in sample.items() if key not in ("n", "c", "size", "layout", "ties")}


def draw(sample: dict[str, Any], dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Tensor:
    """An input that requires a gradient, drawn in float64 and rounded to `dtype`."""
    generator = torch.Generator().manual_seed(1)
    input = torch.randn(sample["n"], sample["c"], *sample["size"], generator=generator, dtype=torch.float64)
    return with_layout(input.to(dtype), layout).requires_grad_()


def gradient_like(output: Tensor) -> Tensor:
    """A gradient of the output, in its dtype."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)


def tolerance(terms: int, dtype: torch.dtype) -> float:
    """Rounding errors of a sum grow with the root of its length; 8 covers the constant and the largest of many."""
    half = dtype in (torch.bfloat16, torch.float16)
    return 8 * math.sqrt(max(terms, 1)) * torch.finfo(torch.float32 if half else dtype).eps + (
        torch.finfo(dtype).eps if half else 0.0
    )


def make_config(rng: random.Random) -> dict[str, Any]:
    """A tiny pooling, drawn so that every named condition is frequent; its output is not empty."""
    while True:
        kernel = (rng.randint(1, 3), rng.randint(1, 3))
        config = dict(
            n=rng.choice([1, 1, 2]),
            c=rng.randint(1, 3),
            size=(rng.randint(1, 6), rng.randint(1, 6)),
            kernel_size=kernel,
            stride=(rng.randint(1, 3), rng.randint(1, 3)),
            padding=(rng.randint(0, kernel[0] // 2), rng.randint(0, kernel[1] // 2)),
            ceil_mode=rng.random() < 0.4,
            layout=rng.choice(LAYOUTS),
        )
        if all(s + 2 * p >= k for s, p, k in zip(config["size"], config["padding"], kernel, strict=True)):
            return config


CONDITIONS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "stride": lambda c: max(c["stride"]) > 1,
    "overlapping windows": lambda c: any(k > s for k, s in zip(c["kernel_size"], c["stride"], strict=True)),
    "disjoint windows": lambda c: all(k <= s for k, s in zip(c["kernel_size"], c["stride"], strict=True)),
    "padding": lambda c: max(c["padding"]) > 0,
    "ceil_mode": lambda c: c["ceil_mode"],
    "ceil_mode with padding": lambda c: c["ceil_mode"] and max(c["padding"]) > 0,
    "contiguous": lambda c: c["layout"] == "contiguous",
    "channels_last": lambda c: c["layout"] == "channels_last",
    "strided view": lambda c: c["layout"] == "strided",
}


def layouts_of(shape: tuple[int, ...]) -> list[Tensor]:
    """Tensors of one shape in every layout that torch's own ops tell apart."""
    made = [with_layout(torch.randn(shape), layout) for layout in LAYOUTS]
    return [
        *made,
        torch.randn(*shape, 2)[..., 0],
        torch.randn(shape[::-1]).permute(3, 2, 1, 0),
        torch.randn(shape[1:]).expand(shape),
    ]


def assert_strides_as_torchs(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], shape: tuple[int, ...], gradients: bool = True
) -> None:
    """Outputs and input gradients have torch's strides, whatever the layout of the input."""
    for input in layouts_of(shape):
        input = input.requires_grad_()
        results = []
        for function in (ours, theirs):
            output = function(input)
            (gradient,) = torch.autograd.grad(output.square().sum(), input)
            results.append((output.stride(), gradient.stride() if gradients else None))
        assert results[0] == results[1], (shape, input.stride())


def assert_independent_of_threads_and_batch(function: Callable[[Tensor], Tensor], input: Tensor) -> None:
    """Outputs and gradients are the same bits for 1, 2 and 3 threads, and for each image alone."""
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            output = function(input)
            results.append((output, *torch.autograd.grad(output.sin().sum(), input)))
    finally:
        torch.set_num_threads(threads)
    alone = [input[i : i + 1].detach().requires_grad_() for i in range(input.shape[0])]
    outputs = [function(image) for image in alone]
    gradients = [torch.autograd.grad(o.sin().sum(), i)[0] for o, i in zip(outputs, alone, strict=True)]
    for output, gradient in [*results[1:], (torch.cat(outputs), torch.cat(gradients))]:
        assert torch.equal(output, results[0][0])
        assert torch.equal(gradient, results[0][1])


def assert_takes_torchs_own_op(pool: Callable[[Tensor], Tensor], torchs: Callable[[Tensor], Tensor]) -> None:
    """Where our kernels cannot follow, `pool` gives what `torchs` gives, and raises with the fallback off."""
    input = torch.randn(2, 3, 6, 6)
    expected = torchs(input)

    class Subclass(torch.Tensor):
        pass

    def jvp() -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(pool(forward_ad.make_dual(input, input))).tangent

    calls = {
        "vmap": lambda: torch.vmap(pool)(input),
        "functional grad": lambda: torch.func.vjp(pool, input)[0],
        "forward mode": jvp,
        "subclass": lambda: pool(input.as_subclass(Subclass)).as_subclass(torch.Tensor),
    }
    for name, call in calls.items():
        torch.testing.assert_close(call(), expected, msg=lambda m, name=name: f"{name}: {m}")
        with fastcnn.backends.fallback(False), pytest.raises(NotImplementedError, match="fallback"):
            call()


# Arguments, keyword arguments, and what both messages say.
BadCalls = dict[str, tuple[tuple[Any, ...], dict[str, Any], tuple[str, ...]]]


def bad_windows(x: Tensor) -> BadCalls:
    """Calls that every pooling with windows refuses, for a 4D `x` of 6 rows and columns."""
    empty = "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input"
    return {
        "zero kernel": ((x, 0, 1), {}, ("kernel size should be greater than zero",)),
        "zero kernel and stride": ((x, 0), {}, ("stride should not be zero",)),
        "negative kernel": ((x, -1), {}, ("kernel size should be greater than zero", "kH: -1")),
        "zero stride": ((x, 2, 0), {}, ("stride should not be zero",)),
        "negative stride": ((x, 2, (1, -1)), {}, ("stride should be greater than zero", "dW: -1")),
        "negative padding": ((x, 2, 2, -1), {}, ("pad must be non-negative", "-1")),
        "padding over half": ((x, 3, 2, 2), {}, ("pad should be at most half of effective kernel size", "pad=2")),
        "kernel too large": ((x, 7), {}, ("Given input size: (3x6x6)", "(3x0x0)", "Output size is too small")),
        "three kernel sizes": (
            (x, (1, 2, 3)),
            {},
            ("kernel_size must either be a single int, or a tuple of two ints",),
        ),
        "no kernel sizes": ((x, ()), {}, ("kernel_size must either be a single int, or a tuple of two ints",)),
        "three strides": ((x, 2, (1, 2, 3)), {}, ("tuple of two ints",)),
        "three paddings": ((x, 2, 2, (1, 1, 1)), {}, ("padding must either be a single int, or a tuple of two ints",)),
        "no channels": ((x[:, :0], 2), {}, (empty,)),
        "no rows": ((x[:, :, :0], 2), {}, (empty,)),
        "no columns": ((x[..., :0].to(memory_format=torch.channels_last), 2), {}, (empty,)),
        "huge kernel": ((x, 2**40), {}, ("value cannot be converted to type int without overflow",)),
        "huge stride": ((x, 2, 2**40), {}, ("value cannot be converted to type int without overflow",)),
        "float kernel": ((x, 2.5), {}, ("kernel_size", "must be tuple of ints, not float")),
        "no kernel": ((x, None), {}, ("kernel_size", "must be tuple of ints, not NoneType")),
        "not a tensor": (([1.0], 2), {}, ("Tensor",)),
        "bool input": ((x > 0, 2), {}, ("not implemented for 'Bool'",)),
        "complex input": ((x.to(torch.complex64), 2), {}, ("not implemented for 'ComplexFloat'",)),
    }
