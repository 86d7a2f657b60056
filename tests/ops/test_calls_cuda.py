"""How ops call the GPU: without waiting for it, on the tensors' device, in CUDA graphs, and deterministically."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gpu
import pytest
import torch
from gpu import DEVICE
from torch import Tensor
from torch.library import opcheck

from fastcnn import ops

pytestmark = gpu.MARKS
KINDS = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}

# By name: the tensors' shapes and the call; everything that an op has a kernel for runs in its backward.
CALLS: dict[str, tuple[list[tuple[int, ...]], Callable[..., Tensor]]] = {
    "conv2d": ([(2, 16, 9, 9), (24, 16, 3, 3), (24,)], lambda x, w, b: ops.conv2d(x, w, b, 1, 1, activation="relu")),
    "conv2d_few": ([(2, 3, 9, 9), (4, 3, 3, 3), (4,)], lambda x, w, b: ops.conv2d(x, w, b, 2, 1)),
    "conv2d_depthwise": ([(2, 16, 9, 9), (16, 1, 3, 3), (16,)], lambda x, w, b: ops.conv2d(x, w, b, 1, 1, groups=16)),
    "conv2d_deep": ([(1, 256, 7, 7), (64, 256, 3, 3), (64,)], lambda x, w, b: ops.conv2d(x, w, b, 1, 1)),
    "max_pool2d": ([(2, 16, 9, 9)], lambda x: ops.max_pool2d(x, 3, 2, 1)),
    "avg_pool2d": ([(2, 16, 9, 9)], lambda x: ops.avg_pool2d(x, 3, 2, 1)),
    "adaptive_avg_pool2d": ([(2, 16, 9, 9)], lambda x: ops.adaptive_avg_pool2d(x, 2)),
    "batch_norm": ([(2, 16, 9, 9), (16,), (16,)], lambda x, w, b: ops.batch_norm(x, None, None, w, b, True)),
    "batch_norm_relu": (
        [(2, 16, 9, 9), (16,), (16,), (2, 16, 9, 9)],
        lambda x, w, b, r: ops.batch_norm_relu(x, None, None, w, b, True, residual=r),
    ),
    "concat": ([(2, 16, 9, 9), (2, 3, 9, 9)], lambda *parts: ops.concat(parts, 1)),
    "concat_of_many": ([(2, 3, 9, 9)] * 70, lambda *parts: ops.concat(parts, 1)),
}


def tensors(name: str, device: str = DEVICE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(shape, generator=generator) for shape in CALLS[name][0])
    return [t.to(device, memory_format=torch.channels_last if t.dim() == 4 else None).requires_grad_() for t in drawn]


def step(name: str, given: list[Tensor]) -> list[Tensor]:
    """Output and gradients; nothing of the graph is kept, which a CUDA graph may not meet again."""
    output = CALLS[name][1](*given)
    gradients = torch.autograd.grad(output, given, torch.ones_like(output))
    return [output.detach(), *gradients]


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", CALLS)
def test_op_on_cuda_does_not_wait_for_the_gpu(name: str) -> None:
    given = tensors(name)
    step(name, given)  # whose memory the next one takes
    torch.cuda.synchronize()
    with waiting_is_an_error():
        step(name, given)


@pytest.mark.parametrize("name", CALLS)
def test_op_on_cuda_in_a_graph_as_without(name: str) -> None:
    given = tensors(name)
    wanted = step(name, given)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as CUDA graphs ask for
        step(name, given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(name, given)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, wanted, strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_op_on_cuda_is_deterministic_where_asked(name: str) -> None:
    given = tensors(name)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [step(name, given) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2 or len(KINDS) > 1, reason="needs two GPUs of one kind")
@pytest.mark.parametrize("name", CALLS)
def test_op_on_cuda_runs_on_its_tensors_device(name: str) -> None:
    with torch.cuda.device(0):
        results = step(name, tensors(name, "cuda:1"))
    assert all(t.device == torch.device("cuda:1") for t in results)
    for got, wanted in zip(results, step(name, tensors(name, "cuda:0")), strict=True):
        torch.testing.assert_close(got.cpu(), wanted.cpu(), rtol=0, atol=0)


def test_ops_on_cuda_pass_torchs_checks() -> None:
    x, weight, bias = tensors("conv2d")
    opcheck(torch.ops.fastcnn.conv2d.default, (x, weight, bias, [1, 1], [1, 1], [1, 1], 1, None))
    opcheck(torch.ops.fastcnn.concat.default, (tensors("concat"), 1))
