"""fastcnn.convert on other people's models: values and gradients against float64, state, and the way back."""

from __future__ import annotations

import copy

import architectures
import pytest
import torch
import torch.nn.functional as F
from conversions import check_values, trace_of
from torch import Tensor, nn

import fastcnn

# How far the converted float32 model's error may lie above the unconverted one's: Winograd's sums round some 3 times as
# much as direct ones and layers amplify that. Errors below the floor, some 100 roundings, say nothing.
TIMES_TORCHS_ERROR = 8.0
FLOOR = 1e-5
# A gradient jumps where a value passes 0 before a ReLU, or two under a max pooling change order: among a million values
# some are so near that float32's rounding decides, in one of the models only. What float32 cannot tell, float64 does.
GRADIENT_FLOOR = 3e-2
# In float64 the two differ by the order of sums, 2e-16, which layers amplify, a batch norm over few values by 1e6; and
# some attention computes in float32 whatever it gets.
FLOAT64 = 1e-6


def run(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The outputs in evaluation and in training, the gradients and the buffers."""
    model.eval()
    with torch.no_grad():
        values = {"output in evaluation": model(images)}
    model.train()
    images = images.clone().requires_grad_()
    output = model(images)
    outputs = [t for t in output if t is not None] if isinstance(output, tuple) else [output]
    sum(F.cross_entropy(t, torch.arange(len(images)) % 10) for t in outputs).backward()
    assert images.grad is not None
    values["output"] = outputs[0].detach()
    values["gradient of the images"] = images.grad
    values["gradients"] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    values["buffers"] = torch.cat([b.flatten().to(images.dtype) for b in model.buffers()] or [images.new_zeros(1)])
    return values


def relative_errors(result: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    return {key: float((result[key].double() - t).norm() / t.norm().clamp(min=1e-30)) for key, t in truth.items()}


def check_model(library: str, name: str, size: int) -> None:
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    model = architectures.build(library, name)
    truth = run(copy.deepcopy(model).double(), images.double())
    in_double = relative_errors(run(fastcnn.convert(copy.deepcopy(model).double()), images.double()), truth)
    assert all(error <= FLOAT64 for error in in_double.values()), in_double
    of_torch = relative_errors(run(copy.deepcopy(model), images), truth)
    before = trace_of(model)
    of_ours = relative_errors(run(fastcnn.convert(model), images), truth)
    assert trace_of(model) != before, "nothing was converted"
    for key, error in of_ours.items():
        floor = GRADIENT_FLOOR if "gradient" in key else FLOOR
        assert error <= max(TIMES_TORCHS_ERROR * of_torch[key], floor), f"{key}: {error}, torch's: {of_torch[key]}"
    values = {key: (tensor, tensor.clone()) for key, tensor in model.state_dict().items()}
    assert trace_of(fastcnn.revert(model)) == before
    check_values(values)


@pytest.mark.parametrize("name", architectures.QUICK)
def test_convert_timm_values_as_torch(name: str) -> None:
    check_model("timm", name, architectures.TIMM[name])


@pytest.mark.models
@pytest.mark.parametrize("name", [name for name in architectures.TIMM if name not in architectures.QUICK])
def test_convert_all_timm_values_as_torch(name: str) -> None:
    check_model("timm", name, architectures.TIMM[name])


@pytest.mark.models
@pytest.mark.parametrize("name", architectures.TORCHVISION)
def test_convert_torchvision_values_as_torch(name: str) -> None:
    check_model("torchvision", name, architectures.TORCHVISION[name])
