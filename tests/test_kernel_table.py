"""Every kernel of the table is reached by a call of an op or a plan: in one list, so that none is left untested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernels import recorded, table
from plans import ACTIVATION, SIGMOID, PlanBuilder

from fastcnn import _library, backends, ops


def _conv2d(c: int, k: int, groups: int = 1, algorithm: str = "direct") -> Callable[[], Any]:
    def call() -> None:
        input = torch.randn(1, c, 6, 6, requires_grad=True)
        weight = torch.randn(k, c // groups, 3, 3, requires_grad=True)
        with backends.conv2d_algorithm(algorithm):
            ops.conv2d(input, weight, torch.zeros(k, requires_grad=True), groups=groups).sum().backward()

    return call


def _pool2d(op: Callable[..., torch.Tensor], *args: Any) -> Callable[[], Any]:
    return lambda: op(torch.randn(1, 3, 6, 6, requires_grad=True), *args).sum().backward()


def _batch_norm() -> None:
    input = torch.randn(4, 3, 6, 6, requires_grad=True)
    ops.batch_norm_relu(input, None, None, training=True).sum().backward()


def _linear() -> None:
    plan = PlanBuilder()
    hidden = plan.inside(3)
    plan.linear(plan.input(10), hidden, torch.randn(3, 10))
    plan.step(ACTIVATION, hidden, plan.output(3), SIGMOID)
    plan.make().run([torch.randn(1, 10)])


# Runs within another kernel's call and leaves no record of its own.
PARTS = {
    "conv2d_pack": "conv2d_direct",
    "conv2d_planes": "conv2d_planar",
    "conv2d_add_parts": "conv2d_grad_weight_taps",
    "conv2d_widen": "conv2d_grad_weight",
    "conv2d_winograd_input": "winograd_f4x3",
    "conv2d_winograd_grad_output": "winograd_f4x3",
    "conv2d_winograd_weight": "winograd_f4x3",
    "conv2d_winograd_output": "winograd_f4x3",
    "conv2d_winograd_grad_weight": "winograd_f4x3",
}
CALLS: dict[str, Callable[[], Any]] = {
    "conv2d_direct": _conv2d(16, 16),
    "conv2d_planar": _conv2d(16, 2),
    "conv2d_planar_grad_weight": _conv2d(1, 2),
    "conv2d_grad_weight": _conv2d(16, 16),
    "conv2d_grad_weight_taps": _conv2d(1, 64),
    "winograd_f4x3": _conv2d(16, 16, algorithm="winograd_f4x3"),
    "conv2d_grad_output": _conv2d(16, 16),
    "conv2d_depthwise": _conv2d(8, 8, 8),
    "relu_mask": lambda: torch.ops.fastcnn._relu_mask(torch.randn(1, 3, 6, 6)),
    "conv2d_depthwise_grad_weight": _conv2d(8, 8, 8),
    "linear": _linear,
    "activation": _linear,
    "fma_peak": lambda: _library.load().fastcnn_fma_gflops(),
    "max_pool2d": _pool2d(ops.max_pool2d, 2),
    "max_pool2d_backward": _pool2d(ops.max_pool2d, 3, 2),
    "max_pool2d_backward_disjoint": _pool2d(ops.max_pool2d, 2),
    "avg_pool2d": _pool2d(ops.avg_pool2d, 2),
    "avg_pool2d_backward": _pool2d(ops.avg_pool2d, 3, 2),
    "avg_pool2d_backward_disjoint": _pool2d(ops.avg_pool2d, 2),
    "global_avg_pool2d": _pool2d(ops.adaptive_avg_pool2d, 1),
    "global_avg_pool2d_backward": _pool2d(ops.adaptive_avg_pool2d, 1),
    "batch_norm_stats": _batch_norm,
    "batch_norm_apply": _batch_norm,
    "batch_norm_grad_sums": _batch_norm,
    "batch_norm_grad_input": _batch_norm,
}


@pytest.mark.parametrize("kernel", table())
def test_kernel_is_reached(kernel: str) -> None:
    kernel = PARTS.get(kernel, kernel)
    assert kernel in CALLS, f"no call in this file reaches {kernel}"
    assert kernel in recorded(CALLS[kernel])
