"""Memory does not grow with the number of different shapes seen: nothing is kept for a shape."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
import torch
from fastcnn import backends, ops

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def step(i):
    # 500 different shapes of about the same size, so that what grows is not what one shape needs.
    height, width, channels = 12 + i % 20, 12 + i // 20, 8 * (1 + i % 3)
    input = torch.randn(2, channels, height, width).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(16, channels, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    gamma, beta = torch.ones(16, requires_grad=True), torch.zeros(16, requires_grad=True)
    features = ops.conv2d(input, weight, torch.zeros(16, requires_grad=True), padding=1, activation="relu")
    features = ops.batch_norm_relu(features, None, None, gamma, beta, training=True)
    features = ops.concat([ops.max_pool2d(features, 3, 2), ops.max_pool2d(features, 3, 2)], 1)
    layers = [ops.DenseLayer(None, None, torch.ones(32 + 8 * k, requires_grad=True), torch.zeros(32 + 8 * k),
                             torch.randn(8, 32 + 8 * k, 3, 3), torch.zeros(8)) for k in range(2)]
    features = ops.dense_block(features, layers, training=True)
    ops.adaptive_avg_pool2d(ops.avg_pool2d(features, 2), 1).sum().backward()

seen = set()
with backends.fallback(FALLBACK):
    for i in range(500):
        if i == 50:
            before = resident()
        step(i)
print(resident() - before)
"""


def growth(fallback: bool) -> int:
    """Bytes by which 450 further shapes raise a process's resident memory."""
    code = SCRIPT.replace("FALLBACK", str(fallback))
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_does_not_grow_with_the_shapes_seen() -> None:
    assert growth(fallback=False) < 20e6
