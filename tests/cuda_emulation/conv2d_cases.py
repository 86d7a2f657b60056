"""Configurations of conv2d for its emulated kernels, and one pass of a configuration against torch in float64."""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from conditions import relative_error, tolerance
from emulated_kernels import Cell
from emulation import Emulator, Launch

PASSES = ("forward", "grad_input", "grad_weight")  # enum Conv2dPass
RESULT_LIKE = {"forward": "grad_output", "grad_input": "input", "grad_weight": "weight"}  # whose shape a result has
READS = {
    "forward": ("input", "weight", "bias"),
    "grad_input": ("grad_output", "weight"),
    "grad_weight": ("input", "grad_output"),
}
VECTORS = {which: (*READS[which][:2], "result") for which in PASSES}  # tensors that are moved as vectors
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Capability, whether TF32 is allowed, and dtype: what lets each kernel run at each dtype, and all there are, in turns.
KINDS = (
    (80, True, torch.float32),
    (80, False, torch.float64),
    (80, False, torch.float16),
    (80, False, torch.bfloat16),
    (75, True, torch.float32),
    (75, False, torch.bfloat16),
)
DEVICES = ((80, True), (75, False), (90, False), (75, True), (80, False), (90, True))
TURNS = tuple((capability, tf32, dtype) for capability, tf32 in DEVICES for dtype in DTYPES)
Pair = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One pass; the `shifted` tensor, or "all", begins one element behind the alignment of vectors."""

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
    batch_invariant: bool = False
    shifted: str = ""

    def offset(self, name: str, dtype: torch.dtype) -> int:
        """How many bytes a tensor begins behind a multiple of 64."""
        return dtype.itemsize if self.shifted in (name, "all") else 0

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


def draw_rest(rng: random.Random, which: str, turn: int) -> dict[str, Any]:
    """Draw what concerns neither sizes nor channels; capability, TF32 and dtype are those of the turn."""
    capability, tf32, dtype = TURNS[turn % len(TURNS)]
    return dict(
        which=which,
        dtype=dtype,
        bias=rng.random() < 0.6,
        relu=rng.random() < 0.4,
        capability=capability,
        tf32=tf32,
        shifted=rng.choice(["", "", "", "", *VECTORS[which], "all"]),
    )


def chosen(c: int, k: int, groups: int) -> Iterator[Case]:
    """Every kind and pass on aligned tensors, then with each of them alone off its alignment."""
    for i, (capability, tf32, dtype), which in product(range(4), KINDS, PASSES):
        yield Case(
            which, dtype, n=1, c=c, k=k, groups=groups, size=(6, 5), kernel=(2, 3), padding=(1, 1),
            relu=True, capability=capability, tf32=tf32, shifted=("", *VECTORS[which])[i],
        )  # fmt: skip


CELLS: set[Cell] = {
    *((which, dtype, capability, tf32) for which in PASSES for capability, tf32, dtype in TURNS),
    *product(PASSES, DTYPES, ("whole vectors of input channels", "whole vectors of output channels"), (False, True)),
    *((which, dtype, "shifted", name) for which in PASSES for dtype in DTYPES for name in VECTORS[which]),
    *product(PASSES, ("groups", "launches")),
    *product(("forward",), ("bias", ""), ("relu", "")),
}


def cells(case: Case, launches: list[Launch], runs: Pair) -> set[Cell]:
    """Name what a case covers; `runs` are the channels of input and output that lie side by side for a kernel."""
    whole = [run * case.dtype.itemsize % 16 == 0 for run in runs]
    found: set[Cell] = {(case.which, case.dtype, case.capability, case.tf32)}
    if not case.shifted:
        found |= {
            (case.which, case.dtype, f"whole vectors of {side} channels", is_whole)
            for side, is_whole in zip(("input", "output"), whole, strict=True)
        }
    elif all(whole):
        found.add((case.which, case.dtype, "shifted", case.shifted))
    if case.groups > 1:
        found.add((case.which, "groups"))
    if len(launches) > 1:
        found.add((case.which, "launches"))
    if case.which == "forward":
        found.add(("forward", "bias" if case.bias else "", "relu" if case.relu else ""))
    return found


Tensors = dict[str, torch.Tensor]


def execute(
    emulator: Emulator, algorithm: str, case: Case, tensors: Tensors, arch: int | None = None, seed: int = 0
) -> tuple[torch.Tensor, list[Launch]]:
    """Run a case as the host code does; return the result, the sum of its parts, or the weight's gradient's parts."""
    library = emulator.library(f"conv2d_{algorithm}", arch)
    given = {
        name: emulator.tensor(tensors[name], offset=case.offset(name, case.dtype), name=name)
        for name in READS[case.which]
        if name in tensors
    }
    fields = dict(dtype=case.dtype, geometry=case.geometry, capability=case.capability, tf32=case.tf32)
    fields |= {"pass": PASSES.index(case.which), "relu": case.relu and case.which == "forward"}
    fields["batch_invariant"] = case.batch_invariant
    args = library.struct("Conv2dArgs", **fields, **given)
    shape, dtype = tensors[RESULT_LIKE[case.which]].shape, case.dtype
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    args.result = case.offset("result", wide)  # as far off the alignment as the memory will be
    if algorithm == "direct":
        assert library.call("choose_conv2d_direct_tile", ctypes.byref(args), restype=ctypes.c_bool)
    parts = library.call(f"conv2d_{algorithm}_parts", ctypes.byref(args), restype=ctypes.c_int64)
    if parts > 0:
        shape, dtype = torch.Size([parts, *shape]), wide
    result = emulator.empty(shape, dtype, offset=case.offset("result", dtype))
    args.result = result.data_ptr()
    launches = library.launch(f"launch_conv2d_{algorithm}", args, seed=seed)
    if parts > 0 and case.which != "grad_weight":
        total = result.sum(0) + tensors.get("bias", 0.0)
        result = (total.relu() if case.relu and case.which == "forward" else total).to(case.dtype)
    return result, launches


def compute(emulator: Emulator, algorithm: str, case: Case, arch: int | None = None) -> list[Launch]:
    """Run a case, and compare the result, or the sum of its parts, with float64."""
    tensors = case.draw()
    result, launches = execute(emulator, algorithm, case, tensors, arch)
    expected = exact(case, **tensors)
    got = result.double().sum(0) if case.which == "grad_weight" else result
    assert got.isfinite().all(), f"{int((~got.isfinite()).sum())} of {got.numel()} are not finite"
    bound = tolerance(case.terms, result.dtype) + (2.0**-10 if uses_tf32(case, launches) else 0.0)
    # Where there are few sums, all may happen to be small.
    error = relative_error(got, expected) * min(1.0, float(expected.abs().max()) / math.sqrt(case.terms))
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
