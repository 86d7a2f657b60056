from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from conditions import LAYOUTS, assert_conditions, assert_raises_like, generate, with_layout
from kernels import recorded
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import fastcnn
from fastcnn.ops import concat


def make_config(rng: random.Random) -> dict[str, Any]:
    """Some tensors to join: sizes, layouts and dtypes drawn so that every named condition is frequent."""
    rank = rng.choice([1, 2, 3, 4, 4, 4, 5])
    dim = rng.randint(-rank, rank - 1)
    shared = [rng.randint(1, 4) for _ in range(rank)]
    if rng.random() < 0.1:
        shared[rng.randrange(rank)] = 0
    shapes = []
    for _ in range(rng.randint(1, 5)):
        shape = list(shared)
        shape[dim] = rng.randint(0, 5)
        shapes.append([0] if rng.random() < 0.05 else shape)
    return dict(rank=rank, dim=dim, shapes=shapes, layouts=[rng.choice(LAYOUTS) for _ in shapes])


def make_tensors(config: dict[str, Any], dtype: torch.dtype = torch.float64, grad: bool = True) -> list[torch.Tensor]:
    made = []
    for shape, layout in zip(config["shapes"], config["layouts"], strict=True):
        t = torch.randn(shape, dtype=dtype)
        made.append(with_layout(t, layout if len(shape) == 4 or layout == "strided" else "contiguous"))
    return [t.requires_grad_(grad) for t in made]


CONFIGS = generate(make_config, 400)
CONDITIONS = {
    "one tensor": lambda c: len(c["shapes"]) == 1,
    "several tensors": lambda c: len(c["shapes"]) > 2,
    "negative dim": lambda c: c["dim"] < 0,
    "channels of images": lambda c: c["rank"] == 4 and c["dim"] in (1, -3),
    "batch": lambda c: c["dim"] in (0, -c["rank"]),
    "all channels_last": lambda c: c["rank"] == 4 and set(c["layouts"]) == {"channels_last"},
    "mixed layouts": lambda c: c["rank"] == 4 and len(set(c["layouts"])) > 1,
    "strided view": lambda c: "strided" in c["layouts"],
    "skipped tensor": lambda c: [0] in c["shapes"] and c["rank"] > 1,
    "empty part": lambda c: any(len(s) == c["rank"] and s[c["dim"]] == 0 for s in c["shapes"]),
}


def test_concat_configurations_cover_conditions() -> None:
    assert_conditions(CONFIGS, CONDITIONS)


def test_concat_values_strides_and_gradients_as_torch() -> None:
    torch.manual_seed(0)
    for config in CONFIGS:
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            tensors = make_tensors(config, dtype)
            expected = torch.cat(tensors, config["dim"])
            with fastcnn.backends.fallback(False):
                output = concat(tensors, config["dim"])
            assert torch.equal(output, expected), config
            assert output.stride() == expected.stride(), config
        grad_output = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, tensors, grad_output)
        for g, w in zip(torch.autograd.grad(output, tensors, grad_output), wanted, strict=True):
            assert torch.equal(g, w), config


@pytest.mark.parametrize("part", range(4))
def test_concat_gradcheck(part: int) -> None:
    torch.manual_seed(0)
    with fastcnn.backends.fallback(False):
        for config in CONFIGS[part::4]:
            # gradcheck itself cannot perturb empty tensors.
            tensors = [t if t.numel() else t.detach() for t in make_tensors(config)]
            if not any(t.requires_grad for t in tensors):
                continue

            def call(*tensors: torch.Tensor, dim: int = config["dim"]) -> torch.Tensor:
                return concat(tensors, dim)

            assert gradcheck(call, tensors, fast_mode=True), config
            assert gradgradcheck(call, tensors, fast_mode=True), config


@pytest.mark.parametrize(
    ("dtypes", "wanted"),
    [
        ((torch.float32, torch.float64), torch.float64),
        ((torch.bfloat16, torch.float16), torch.float32),
        ((torch.int32, torch.float32), torch.float32),
        ((torch.uint8, torch.int64), torch.int64),
        ((torch.bool, torch.bool), torch.bool),
        ((torch.float32, torch.complex64), torch.complex64),
    ],
)
def test_concat_promotes_dtypes_as_torch(dtypes: tuple[torch.dtype, ...], wanted: torch.dtype) -> None:
    tensors = [torch.ones(2, 3).to(dtype) for dtype in dtypes]
    output = concat(tensors, 1)
    assert output.dtype == wanted
    assert torch.equal(output, torch.cat(tensors, 1))


def test_concat_gradients_keep_each_tensors_dtype() -> None:
    tensors = [torch.randn(2, 3, requires_grad=True), torch.randn(2, 1, dtype=torch.float64, requires_grad=True)]
    grads = torch.autograd.grad(concat(tensors, 1).sum(), tensors)
    assert [g.dtype for g in grads] == [torch.float32, torch.float64]


@pytest.mark.parametrize(
    ("tensors", "dim", "words"),
    [
        ([], 0, ("expected a non-empty list",)),
        ([torch.zeros(2, 3), torch.zeros(3, 3)], 1, ("Sizes of tensors must match except in dimension 1",)),
        ([torch.zeros(2, 3), torch.zeros(2, 3, 1)], 1, ("same number of dimensions",)),
        ([torch.zeros(()), torch.zeros(2)], 0, ("zero-dimensional tensor",)),
        ([torch.zeros(2, 3)], 2, ("Dimension out of range",)),
        ([torch.zeros(2, 3)], -3, ("Dimension out of range",)),
    ],
)
def test_concat_bad_input_raises_as_torch(tensors: list[torch.Tensor], dim: int, words: tuple[str, ...]) -> None:
    assert_raises_like(lambda: concat(tensors, dim), lambda: torch.cat(tensors, dim), *words)


def test_concat_opcheck() -> None:
    torch.manual_seed(0)
    for config in CONFIGS[:8]:
        torch.library.opcheck(torch.ops.fastcnn.concat.default, (make_tensors(config), config["dim"]))


def test_concat_takes_torchs_own_op_where_ours_cannot_follow() -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    expected = torch.cat((a, b), 1)

    def jvp() -> torch.Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(concat([forward_ad.make_dual(a, a), forward_ad.make_dual(b, b)], 1)).tangent

    calls = {
        "vmap": lambda: torch.vmap(lambda x, y: concat([x, y]))(a, b),
        "forward mode": jvp,
        "complex": lambda: concat([a.to(torch.complex64), b.to(torch.complex64)], 1).real,
    }
    for name, call in calls.items():
        torch.testing.assert_close(call(), expected, msg=lambda m, name=name: f"{name}: {m}")
        with fastcnn.backends.fallback(False), pytest.raises(NotImplementedError, match="fallback"):
            call()


def test_concat_under_autocast_promotes_to_the_widest_dtype() -> None:
    tensors = [torch.randn(2, 3), torch.randn(2, 3, dtype=torch.bfloat16)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert concat(tensors).dtype == torch.cat(tensors).dtype == torch.float32


def test_concat_runs_our_kernel() -> None:
    assert recorded(lambda: concat([torch.zeros(1, 2), torch.zeros(1, 2)])) == ["concat"]
