"""What the tests of fastcnn.compilation share: networks with statistics that matter, and the comparison in float64."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import fastcnn

# The plans' executor computes in float64; what is left are weights rounded to float32, and values between segments.
TOLERANCE = 2e-6


def prepare(model: nn.Module) -> nn.Module:
    """In evaluation mode, with running statistics and affine parameters away from 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.3, 2, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.2, generator=generator)
    return model.eval()


def random(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def exact(model: nn.Module, *inputs: Tensor) -> Any:
    """What the model returns in float64."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(*[tensor.double() for tensor in inputs])


def check(compiled: Any, model: nn.Module, *inputs: Tensor) -> None:
    """Compiled and eager model return the same, in tensors of the same shapes."""
    actual, expected = compiled(*inputs), exact(model, *inputs)
    torch.utils._pytree.tree_map(check_value, actual, expected)


def check_value(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE * max(scale, 1e-30))


def compile_and_check(model: nn.Module, *sizes: int, batches: tuple[int, ...] = (1, 3, 8)) -> Any:
    """Compiles once, on an example of batch 1, and compares for several batches."""
    prepare(model)
    compiled = fastcnn.compile(model, random(1, *sizes))
    for batch in batches:
        check(compiled, model, random(batch, *sizes, seed=batch))
    return compiled
