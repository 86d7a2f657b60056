"""Configurations of conv2d for its emulated kernels, and one pass of a configuration against torch in float64."""

from __future__ import annotations

import ctypes
import math
import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from conditions import relative_error, tolerance
from emulation import Emulator, Launch

PASSES = ("forward", "grad_input", "grad_weight")  # enum Conv2dPass
RESULT_LIKE = {"forward": "grad_output", "grad_input": "input", "grad_weight": "weight"}  # whose shape a result has
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
Pair = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One pass; `offset` is how many bytes tensors begin behind a multiple of 64."""

    which: str
    dtype: torch.dtype
    n: int
    c: int
    k: int
    size: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = True
    relu: bool = False
    capability: int = 80
    tf32: bool = False
    offset: int = 0

    @property
    def out_size(self) -> Pair:
        h, w = (
            (self.size[d] + 2 * self.padding[d] - self.dilation[d] * (self.kernel[d] - 1) - 1) // self.stride[d] + 1
            for d in (0, 1)
        )
        return h, w

    @property
    def terms(self) -> int:
        """Products in one element of the result."""
        if self.which == "grad_weight":
            return self.n * math.prod(self.out_size)
        return (self.c if self.which == "forward" else self.k) // self.groups * math.prod(self.kernel)

    @property
    def geometry(self) -> dict[str, int]:
        pairs = {"in": self.size, "out": self.out_size, "kernel": self.kernel, "stride": self.stride}
        pairs |= {"pad": self.padding, "dilation": self.dilation}
        fields = {f"{name}_{axis}": pair[d] for name, pair in pairs.items() for d, axis in enumerate("hw")}
        return fields | {"batch": self.n, "in_channels": self.c, "out_channels": self.k, "groups": self.groups}

    def draw(self) -> dict[str, torch.Tensor]:
        """Draw input, weight, grad_output and perhaps bias of random normals, all NHWC."""
        generator = torch.Generator().manual_seed(self.terms)
        shapes = {
            "input": (self.n, *self.size, self.c),
            "weight": (self.k, *self.kernel, self.c // self.groups),
            "grad_output": (self.n, *self.out_size, self.k),
        }
        if self.bias and self.which == "forward":
            shapes["bias"] = (self.k,)
        return {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)
            for name, shape in shapes.items()
        }


def draw_window(rng: random.Random, largest: int) -> dict[str, Any]:
    """Draw kernel, stride, padding, dilation and a size that the window fits into."""
    kernel = (rng.choice([1, 1, 2, 3, 3, 5]), rng.choice([1, 1, 2, 3, 3, 4]))
    stride = (rng.choice([1, 1, 1, 2, 3]), rng.choice([1, 1, 1, 2, 4]))
    dilation = (rng.choice([1, 1, 1, 2]), rng.choice([1, 1, 1, 2, 3]))
    padding = (rng.randint(0, 2), rng.randint(0, 2))
    size = tuple(max(rng.randint(1, largest), dilation[d] * (kernel[d] - 1) + 1 - 2 * padding[d]) for d in (0, 1))
    return dict(kernel=kernel, stride=stride, dilation=dilation, padding=padding, size=size)


def draw_rest(rng: random.Random, which: str) -> dict[str, Any]:
    """Draw what concerns neither sizes nor channels."""
    dtype = rng.choice(DTYPES)
    return dict(
        which=which,
        dtype=dtype,
        bias=rng.random() < 0.6,
        relu=rng.random() < 0.4,
        capability=rng.choice([75, 80, 90]),
        tf32=rng.random() < 0.5,
        offset=rng.choice([0, 0, 0, 4 if dtype.itemsize < 8 else 8]),
    )


Tensors = dict[str, torch.Tensor]


def execute(
    emulator: Emulator, algorithm: str, case: Case, tensors: Tensors, arch: int | None = None, seed: int = 0
) -> tuple[torch.Tensor, list[Launch]]:
    """Run a case as the host code does; return the result, or the parts of the weight's gradient."""
    library = emulator.library(f"conv2d_{algorithm}", arch)
    read = {"forward": ("input", "weight", "bias"), "grad_input": ("grad_output", "weight")}
    names = read.get(case.which, ("input", "grad_output"))
    given = {name: emulator.tensor(tensors[name], offset=case.offset, name=name) for name in names if name in tensors}
    fields = dict(dtype=case.dtype, geometry=case.geometry, capability=case.capability, tf32=case.tf32)
    fields |= {"pass": PASSES.index(case.which), "relu": case.relu and case.which == "forward"}
    args = library.struct("Conv2dArgs", **fields, **given)
    shape, dtype = tensors[RESULT_LIKE[case.which]].shape, case.dtype
    if case.which == "grad_weight":
        parts = library.call(f"conv2d_{algorithm}_parts", ctypes.byref(args), restype=ctypes.c_int64)
        dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
        shape = torch.Size([parts, *shape])
    result = emulator.empty(shape, dtype, offset=case.offset)
    args.result = result.data_ptr()
    launches = library.launch(f"launch_conv2d_{algorithm}", args, seed=seed)
    return result, launches


def compute(emulator: Emulator, algorithm: str, case: Case, arch: int | None = None) -> list[Launch]:
    """Run a case, and compare the result, or the sum of its parts, with float64."""
    tensors = case.draw()
    result, launches = execute(emulator, algorithm, case, tensors, arch)
    expected = exact(case, **tensors)
    got = result.double().sum(0) if case.which == "grad_weight" else result
    assert got.isfinite().all(), f"{int((~got.isfinite()).sum())} of {got.numel()} are not finite"
    bound = tolerance(case.terms, result.dtype) + (2.0**-10 if uses_tf32(case, launches) else 0.0)
    error = relative_error(got, expected)
    assert error <= bound, f"error {error}, but at most {bound} expected"
    return launches


def uses_tf32(case: Case, launches: list[Launch]) -> bool:
    return case.dtype == torch.float32 and any("wmma" in launch.kernel for launch in launches)


def exact(
    case: Case,
    input: torch.Tensor,
    weight: torch.Tensor,
    grad_output: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the pass by torch in float64, NHWC in and out."""
    x, w, g = (t.double().movedim(-1, 1) for t in (input, weight, grad_output))
    if case.which == "forward":
        options = (case.stride, case.padding, case.dilation, case.groups)
        y = F.conv2d(x, w, None if bias is None else bias.double(), *options)
        return (y.relu() if case.relu else y).movedim(1, -1)
    options = ([*case.stride], [*case.padding], [*case.dilation], False, [0, 0], case.groups)
    of_input = case.which == "grad_input"
    gradients = torch.ops.aten.convolution_backward(g, x, w, None, *options, [of_input, not of_input, False])
    return gradients[0 if of_input else 1].movedim(1, -1)
