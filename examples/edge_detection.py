"""Learns the edge detector [1, -1] from one image and its edges, through fastcnn's convolution.

Run it: python examples/edge_detection.py. It ends with an error where the kernel was not learnt.
"""

from __future__ import annotations

import sys

import torch

import fastcnn

STEPS = 10
LEARNING_RATE = 3e-2
TOLERANCE = 0.1


def main() -> int:
    """Prints the loss of each step and the learnt kernel; returns 0 if it is the edge detector."""
    torch.manual_seed(0)
    edge_detector = torch.tensor([[[[1.0, -1.0]]]])

    # White with a black bar: 1 everywhere but in columns 2 to 5.
    image = torch.ones(1, 1, 6, 8)
    image[..., 2:6] = 0
    edges = fastcnn.ops.conv2d(image, edge_detector)
    print("image, one of its rows:", image[0, 0, 0].tolist())
    print("edges, one of its rows:", edges[0, 0, 0].tolist())

    layer = fastcnn.nn.Conv2d(1, 1, kernel_size=(1, 2), bias=False)
    for step in range(1, STEPS + 1):
        loss = ((layer(image) - edges) ** 2).sum()
        layer.zero_grad()
        loss.backward()
        with torch.no_grad():
            assert layer.weight.grad is not None
            layer.weight -= LEARNING_RATE * layer.weight.grad
        print(f"step {step:2d}  loss {loss.item():9.4f}")

    error = (layer.weight - edge_detector).abs().max().item()
    left, right = layer.weight.flatten().tolist()
    print(f"learnt kernel: [{left:.4f}, {right:.4f}]; wanted: [1, -1]; largest error {error:.4f}")
    if error > TOLERANCE:
        print(f"not learnt: expected an error of at most {TOLERANCE}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
