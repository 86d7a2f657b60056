"""What passes make of a model: how many steps, which of them, and that the results stay."""

from __future__ import annotations

import random as python_random
from typing import Any

import pytest
import torch
from compiling import compile_and_check
from torch import Tensor, nn
from torch.nn import functional as F

from fastcnn.compilation.memory import ALIGNMENT, Buffer, assign_offsets


def conv(channels: int = 4, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2)


def depthwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


class Lambda(nn.Module):
    """Layers and what to do with them and the input."""

    def __init__(self, function: Any, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.layers)


def cases() -> dict[str, tuple[Any, list[nn.Module], list[str]]]:
    """By name: what to compute, of which layers, and the kinds of the steps that it takes."""
    norm = nn.BatchNorm2d
    return {
        "conv norm relu": (lambda x, c, n: F.relu(n(c(x))), [conv(), norm(4)], ["conv2d"]),
        "conv norm sigmoid": (lambda x, c, n: torch.sigmoid(n(c(x))), [conv(), norm(4)], ["conv2d"]),
        "conv relu6": (lambda x, c: F.relu6(c(x)), [conv()], ["conv2d"]),
        "conv hardtanh": (lambda x, c: F.hardtanh(c(x), 0, 6), [conv()], ["conv2d"]),
        "conv norm hardswish": (lambda x, c, n: F.hardswish(n(c(x))), [conv(), norm(4)], ["conv2d"]),
        "squeeze and excite": (
            lambda x, c, d: (lambda y: y * F.hardsigmoid(d(F.adaptive_avg_pool2d(y, 1))))(F.silu(c(x))),
            [conv(), conv(4, 1)],
            ["conv2d", "adaptive_avg_pool2d", "conv2d", "scale_images"],
        ),
        "excite by a linear layer": (
            lambda x, c, f: c(x) * f(x.mean((2, 3))).sigmoid().view(-1, 4, 1, 1),
            [conv(), nn.Linear(4, 4)],
            ["conv2d", "adaptive_avg_pool2d", "linear", "scale_images"],
        ),
        "sum of a depthwise layer and a 1x1 one": (
            lambda x, d, c: d(x) + c(x),
            [depthwise(4), conv(4, 1)],
            ["conv2d", "conv2d"],
        ),
        "sum of a 1x1 layer and a depthwise one": (
            lambda x, d, c: c(x) + d(x),
            [depthwise(4), conv(4, 1)],
            ["conv2d", "conv2d"],
        ),
        "1x1 layer that adds what it reads": (
            lambda x, d, c: (lambda y: c(y) + y)(d(x)),
            [depthwise(4), conv(4, 1)],
            ["conv2d", "conv2d"],
        ),
        "conv used twice": (
            lambda x, c, n: (lambda y: y + n(y))(c(x)),
            [conv(), norm(4)],
            ["conv2d", "scale_shift", "add"],
        ),
        "norm first": (lambda x, n, c: c(F.relu(n(x))), [norm(4), conv()], ["scale_shift", "conv2d"]),
        "two norms": (lambda x, c, n, m: m(n(c(x))), [conv(), norm(4), norm(4)], ["conv2d"]),
        "relu before norm": (lambda x, c, n: n(F.relu(c(x))), [conv(), norm(4)], ["conv2d", "scale_shift"]),
        "residual": (lambda x, c, n: F.relu(x + n(c(x))), [conv(), norm(4)], ["conv2d"]),
        "two branches": (lambda x, c, d: F.relu(c(x) + d(x)), [conv(), conv()], ["conv2d", "conv2d"]),
        "doubled": (lambda x, c: (lambda y: y + y)(c(x)), [conv()], ["conv2d", "add"]),
        "relu before add": (lambda x, c: x + F.relu(c(x)), [conv()], ["conv2d", "add"]),
        "returned before relu": (lambda x, c: (lambda y: (y, F.relu(y)))(c(x)), [conv()], ["conv2d", "activation"]),
        "flatten": (
            lambda x, c, f: F.relu(f(F.relu(c(x).flatten(1)))),
            [conv(), nn.Linear(4 * 30, 7)],
            ["conv2d", "linear"],
        ),
        "view": (lambda x, c, f: f(c(x).view(x.size(0), -1)), [conv(), nn.Linear(4 * 30, 7)], ["conv2d", "linear"]),
        "linear norm": (
            lambda x, f, n: F.relu(n(f(x.flatten(1)))),
            [nn.Linear(4 * 30, 7), nn.BatchNorm1d(7)],
            ["linear"],
        ),
        "flatten used twice": (
            lambda x, f: (lambda y: (f(y), y))(F.relu(x).flatten(1)),
            [nn.Linear(4 * 30, 7)],
            ["activation", "linear", "aten.sym_size.int", "aten.reshape.default"],
        ),
        "mean": (lambda x, f: f(x.mean((2, 3))), [nn.Linear(4, 7)], ["adaptive_avg_pool2d", "linear"]),
        "mean kept": (lambda x, c: c(x.mean([-1, -2], keepdim=True)), [conv()], ["adaptive_avg_pool2d", "conv2d"]),
        "global average returned": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), [], ["adaptive_avg_pool2d"]),
        "pools": (
            lambda x: F.avg_pool2d(F.max_pool2d(x, 3, 2, 1, ceil_mode=True), 2, 1, 1, count_include_pad=False),
            [],
            ["max_pool2d", "avg_pool2d"],
        ),
        "divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), [], ["avg_pool2d"]),
        "maxima of convs": (
            lambda x, c, d, n: F.max_pool2d(d(F.max_pool2d(F.relu(n(c(x))), 2)).sigmoid(), 2, stride=(2, 2)),
            [nn.Conv2d(4, 4, 3, padding=2), conv(4, 5), norm(4)],
            ["conv2d"] * 2,
        ),
        "maxima of maxima": (
            lambda x, c: F.max_pool2d(F.max_pool2d(c(x), 2), 2),
            [nn.Conv2d(4, 4, 3, padding=2)],
            ["conv2d", "max_pool2d"],
        ),
        "maxima of a concat's part": (
            lambda x, c, d: torch.cat([F.max_pool2d(c(x), 2), d(F.max_pool2d(x, 2))], 1),
            [conv(), conv()],
            ["conv2d", "max_pool2d", "conv2d"],
        ),
        "maxima apart": (  # of overlapping, padded, dilated windows, rounded up, of what others read
            lambda x, c: (
                F.max_pool2d(c(x), 3, 2),
                F.max_pool2d(c(x), 2, 1),
                F.max_pool2d(c(x), 2, padding=1),
                F.max_pool2d(c(x), 2, dilation=2),
                F.max_pool2d(c(x), 2, ceil_mode=True),
                (lambda y: (F.max_pool2d(y, 2), y))(c(x)),
            ),
            [conv()],
            ["conv2d", "max_pool2d"] * 6,
        ),
        "maxima of other convs": (  # of 1x1, strided, dilated, grouped, with a residual
            lambda x, c, d, e, f, g: (
                F.max_pool2d(g(x), 2),
                F.max_pool2d(c(x), 2),
                F.max_pool2d(d(x), 2),
                F.max_pool2d(e(x), 2),
                F.max_pool2d(f(x) + x, 2),
            ),
            [
                *(conv(4, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=2, dilation=2), conv()),
                nn.Conv2d(4, 4, 3, padding=1, groups=4),
            ],
            ["conv2d", "max_pool2d"] * 5,
        ),
        "average of a pointwise conv": (
            lambda x, c, n, m: F.relu(m(F.avg_pool2d(n(c(x)), 2))),
            [nn.Conv2d(4, 6, 1, groups=2), norm(6), norm(6)],
            ["avg_pool2d", "conv2d"],
        ),
        "averages of pointwise convs": (
            lambda x, c, d: F.adaptive_avg_pool2d(d(F.avg_pool2d(c(x), 2, 3, ceil_mode=True)), 1),
            [nn.Conv2d(4, 2, 1), nn.Conv2d(2, 6, 1, bias=False)],
            ["avg_pool2d", "adaptive_avg_pool2d", "conv2d", "conv2d"],
        ),
        "averages that stay": (  # of padded or overlapping windows, by another divisor, of more pixels, read by others
            lambda x, c: (
                F.avg_pool2d(c(x), 2, padding=1),
                F.avg_pool2d(c(x), 3, 2),
                F.avg_pool2d(c(x), 2, divisor_override=3),
                F.adaptive_avg_pool2d(c(x), (7, 9)),
                (lambda y: (F.avg_pool2d(y, 2), y))(c(x)),
            ),
            [conv(4, 1)],
            [*["conv2d", "avg_pool2d"] * 3, "conv2d", "adaptive_avg_pool2d", "conv2d", "avg_pool2d"],
        ),
        "averages of other convs": (  # of 3x3, strided, padded, with an activation, with a residual
            lambda x, c, d, e, f: (
                F.avg_pool2d(c(x), 2),
                F.avg_pool2d(d(x), 2),
                F.avg_pool2d(e(x), 2),
                F.avg_pool2d(F.relu(f(x)), 2),
                F.avg_pool2d(f(x) + x, 2),
            ),
            [conv(), nn.Conv2d(4, 4, 1, 2), nn.Conv2d(4, 4, 1, padding=1), conv(4, 1)],
            ["conv2d", "avg_pool2d"] * 5,
        ),
        "inverted residual": (
            lambda x, c, n, d, m, e: x + e(F.relu6(m(d(F.relu6(n(c(x))))))),
            [nn.Conv2d(4, 12, 1, bias=False), norm(12), depthwise(12), norm(12), nn.Conv2d(12, 4, 1)],
            ["inverted_residual"],
        ),
        "inverted residual without expansion": (
            lambda x, d, e: F.relu(e(F.silu(d(x)))),
            [nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.Conv2d(4, 7, 1)],
            ["inverted_residual"],
        ),
        "inverted residual without projection": (
            lambda x, d, e: F.silu(d(F.relu(e(x)))),
            [depthwise(12), nn.Conv2d(4, 12, 1)],
            ["inverted_residual"],
        ),
        "inverted residual without projection, with a residual": (  # which a depthwise layer adds in a pass of its own
            lambda x, c, d, e: F.relu(c(x)) + d(F.relu(e(x))),
            [nn.Conv2d(4, 12, 1), depthwise(12), nn.Conv2d(4, 12, 1)],
            ["conv2d"] * 3,
        ),
        "inverted residual in a concat": (
            lambda x, c, d, e: torch.cat([x, e(d(c(x)))], 1),
            [nn.Conv2d(4, 12, 1), depthwise(12), nn.Conv2d(12, 3, 1)],
            ["copy", "inverted_residual"],
        ),
        "inverted residual read inside": (
            lambda x, c, d, e: ((lambda y: (e(d(y)), y))(c(x)), (lambda y: (e(F.relu(y)), y))(d(c(F.relu(x))))),
            [nn.Conv2d(4, 12, 1), depthwise(12), nn.Conv2d(12, 4, 1)],
            ["conv2d", "inverted_residual", "activation", "inverted_residual", "activation", "conv2d"],
        ),
        "inverted residual that adds what it expands": (
            lambda x, c, d, e: (lambda y: y + e(d(y)))(F.relu(c(x))),
            [nn.Conv2d(4, 12, 1), depthwise(12), nn.Conv2d(12, 12, 1)],
            ["conv2d", "inverted_residual"],
        ),
        "depthwise layers apart": (  # alone, by 3x3, grouped and strided layers, many weights, windows in the padding
            lambda x, c, d, e, f, g, h, i, j, k: (d(x), c(d(c(x))), f(d(e(x))), i(h(g(x))), k(j(x))),
            [
                *(conv(), depthwise(4), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1, 2)),
                *(nn.Conv2d(4, 16500, 1), depthwise(16500), nn.Conv2d(16500, 4, 1)),
                *(nn.Conv2d(4, 4, 1, padding=1, groups=4), nn.Conv2d(4, 4, 1)),
            ],
            ["conv2d"] * 12,
        ),
        "concat": (
            lambda x, c, d, e: e(torch.cat([c(x), d(x)], 1)),
            [conv(), conv(), nn.Conv2d(8, 3, 1)],
            ["conv2d", "conv2d", "conv2d"],
        ),
        "concat returned": (lambda x, c, d: torch.cat([c(x), d(x)], 1), [conv(), conv()], ["conv2d", "conv2d"]),
        "concat of the input": (lambda x, c: torch.cat([x, c(x)], 1), [conv()], ["conv2d", "copy"]),
        "concat of one twice": (
            lambda x, c, d: d(torch.cat((lambda y: [y, y])(c(x)), 1)),
            [conv(), nn.Conv2d(8, 3, 1)],
            ["conv2d", "conv2d", "copy"],
        ),
        "part of two concats": (
            lambda x, c, d: (lambda y, z: F.relu(torch.cat([y, z], 1)) + torch.cat([z, y], 1))(c(x), d(x)),
            [conv(), conv()],
            ["conv2d", "conv2d", "activation", "copy", "copy", "add"],
        ),
        "part returned": (
            lambda x, c, d: (lambda y: (y, d(torch.cat([y, F.relu(y)], 1))))(c(x)),
            [conv(), nn.Conv2d(8, 3, 1)],
            ["conv2d", "copy", "activation", "conv2d"],
        ),
        "siblings": (
            lambda x, c, d, e, n, f, g: torch.cat([c(x), f(F.relu(d(x))), g(F.relu(n(e(x))))], 1),
            [conv(4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 1), norm(5), nn.Conv2d(3, 2, 3, 1, 1), nn.Conv2d(5, 6, 1)],
            ["conv2d"] * 4,
        ),
        "siblings read twice": (
            lambda x, c, d, e, f: (lambda y, z: F.relu(e(y) + f(y) + e(z) + f(z)))(c(x), d(x)),
            [conv(), conv(), conv(), conv()],
            ["conv2d"] * 5,
        ),
        "no siblings": (  # of another activation, with bias, of another stride, added to, given back
            lambda x, c, d, e, f, g: (g(F.relu(c(x))) + g(d(x)) + g(e(x)), F.relu(g(x) + x), f(x)),
            [conv(), conv(), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, 2, 1), conv()],
            ["conv2d"] * 8,
        ),
        "dropped": (lambda x, c: F.dropout(c(x).clone().contiguous().detach(), training=False), [conv()], ["conv2d"]),
        "written in place": (lambda x, c: (lambda y: y.add_(x).relu_())(c(x)), [conv()], ["conv2d"]),
        "view written in place": (
            lambda x, c: (lambda y: (y[:, :2].mul_(2), y)[1])(c(x)),
            [conv()],
            ["conv2d", *["aten.slice.Tensor"] * 2, "aten.mul.Tensor"],
        ),
        "same": (
            lambda x, c: c(x),
            [nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1), groups=2)],
            ["conv2d"],
        ),
        "grouped and strided": (lambda x, c: c(x), [nn.Conv2d(4, 8, 3, (2, 1), (1, 2), groups=4)], ["conv2d"]),
        "unknown between": (
            lambda x, c, d: d(F.elu(c(x))),
            [conv(), conv()],
            ["conv2d", "aten.elu.default", "conv2d"],
        ),
        "broadcast": (lambda x, c: c(x) * torch.sigmoid(x.mean(1, keepdim=True)), [conv()], ["aten.mul.Tensor"]),
        "input returned": (lambda x: (x, F.relu(x)), [], ["aten.clone.default", "activation"]),
        "other dtype": (lambda x, c: (c(x) > 0, c(x)), [conv()], ["aten.gt.Scalar"]),
    }


@pytest.mark.parametrize("name", cases())
def test_passes_keep_results_in_few_steps(name: str) -> None:
    torch.manual_seed(0)
    function, layers, kinds = cases()[name]
    model = Lambda(function, *layers)
    if name == "other dtype":
        model.function = lambda x, c: (c(x) > 0).float() + F.relu(c(x))
    report = compile_and_check(model, 4, 5, 6).report()
    steps = [step.removesuffix(" (Python)") for step in report.steps]
    if name in ("view written in place", "broadcast", "other dtype"):  # torch decides how
        assert set(kinds) <= set(steps)
    else:
        assert sorted(steps) == sorted(kinds)


def test_assign_offsets_keeps_what_lives_together_apart() -> None:
    rng = python_random.Random(0)
    for _ in range(200):
        buffers = []
        for _ in range(rng.randint(1, 20)):
            first = rng.randint(0, 30)
            buffers.append(Buffer(rng.randint(1, 100), first, first + rng.randint(0, 6)))
        offsets, arena = assign_offsets(buffers)
        for i, (a, start) in enumerate(zip(buffers, offsets, strict=True)):
            assert start % ALIGNMENT == 0 and 0 <= start <= arena - a.size
            for b, other in zip(buffers[:i], offsets[:i], strict=True):
                together = a.first <= b.last and b.first <= a.last
                assert not together or start + a.size <= other or other + b.size <= start


def test_arena_of_a_chain_holds_two_of_its_values() -> None:
    convs = [layer for _ in range(6) for layer in (conv(16), nn.ReLU())]
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(480, 2))
    report = compile_and_check(model, 16, 5, 6).report()
    assert report.image_bytes == 2 * 4 * 16 * 30
