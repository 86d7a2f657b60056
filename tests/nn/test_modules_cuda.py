"""Modules on a GPU against torch.nn's on the CPU in float64: outputs, gradients, statistics, and converted models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import gpu
import pytest
import torch
from conditions import relative_error
from gpu import DEVICE, moved
from torch import Tensor, nn

import fastcnn
from fastcnn.models.layers import TorchConcat, TorchDenseBlock

pytestmark = gpu.MARKS

Made = Callable[[], nn.Module]
# Ours and torch's, whose state_dict ours takes, of an image with 9 channels.
MODULES: dict[str, tuple[Made, Made]] = {
    "conv2d": (lambda: fastcnn.Conv2d(9, 16, 3, 2, 1), lambda: nn.Conv2d(9, 16, 3, 2, 1)),
    "conv2d_same": (
        lambda: fastcnn.Conv2d(9, 6, (3, 5), padding="same", groups=3, bias=False),
        lambda: nn.Conv2d(9, 6, (3, 5), padding="same", groups=3, bias=False),
    ),
    "max_pool2d": (lambda: fastcnn.MaxPool2d(3, 2, 1), lambda: nn.MaxPool2d(3, 2, 1)),
    "avg_pool2d": (
        lambda: fastcnn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    ),
    "adaptive_avg_pool2d": (lambda: fastcnn.AdaptiveAvgPool2d((3, 4)), lambda: nn.AdaptiveAvgPool2d((3, 4))),
    "global_avg_pool2d": (fastcnn.GlobalAvgPool2d, lambda: nn.AdaptiveAvgPool2d(1)),
    "batch_norm2d": (lambda: fastcnn.BatchNorm2d(9), lambda: nn.BatchNorm2d(9)),
    "batch_norm_relu2d": (lambda: fastcnn.BatchNormReLU2d(9), lambda: nn.BatchNorm2d(9)),
    "dense_block": (lambda: fastcnn.DenseBlock(3, 9, 8), lambda: TorchDenseBlock(3, 9, 8)),
}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 8e-3}


@pytest.fixture(autouse=True)
def _without_tf32_and_fallback() -> Iterator[None]:
    with gpu.tf32(False), fastcnn.backends.fallback(False):
        yield


def image(dtype: torch.dtype, *shape: int) -> Tensor:
    drawn = torch.randn(shape or (4, 9, 13, 11), generator=torch.Generator().manual_seed(3))
    return drawn.to(dtype, memory_format=torch.channels_last if drawn.dim() == 4 else torch.contiguous_format)


def step(module: nn.Module, x: Tensor, relu: bool = False) -> dict[str, Tensor]:
    """The output, and all gradients of a loss that weighs its values differently."""
    x = x.detach().requires_grad_()
    output = module(x)
    output = output.relu() if relu else output
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    (output * weights.to(output)).sum().backward()
    assert x.grad is not None
    values = {"output": output.detach(), "gradient": x.grad, **dict(module.named_buffers())}
    values |= {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return {name: value.cpu() for name, value in values.items()}


def check(got: dict[str, Tensor], wanted: dict[str, Tensor], bound: float) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert relative_error(got[name].double(), value.double()) <= bound, name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "dtype"),
    # A dense block's layers round one after the other.
    [(name, dtype) for name in MODULES for dtype in TOLERANCE if name != "dense_block" or dtype == torch.float32],
)
def test_module_on_cuda_as_torchs(name: str, dtype: torch.dtype, training: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = (make() for make in MODULES[name])
    ours.load_state_dict(theirs.state_dict())
    ours = ours.to(DEVICE, dtype).train(training)
    theirs.load_state_dict({key: value.cpu() for key, value in ours.state_dict().items()})  # rounded
    x = image(dtype)
    check(
        step(ours, moved(x)),
        step(theirs.double().train(training), x.double(), relu=name == "batch_norm_relu2d"),
        TOLERANCE[dtype],
    )


def test_batch_norm1d_on_cuda_as_torchs() -> None:
    x = image(torch.float32, 40, 9)
    check(step(fastcnn.BatchNorm1d(9).to(DEVICE), moved(x)), step(nn.BatchNorm1d(9).double(), x.double()), 2e-5)


def test_concat_on_cuda_as_torchs() -> None:
    parts = [image(torch.float32), image(torch.float32)[:, :4]]
    assert torch.equal(fastcnn.Concat()([moved(part) for part in parts]).cpu(), TorchConcat()(parts))


def test_converted_model_on_cuda_as_before() -> None:
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Conv2d(9, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2))
    model = nn.Sequential(*norm, nn.Conv2d(32, 8, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    original = copy.deepcopy(model).double()
    fastcnn.convert(model.to(DEVICE))
    x = image(torch.float32)
    check(step(model, moved(x)), step(original, x.double()), 5e-5)
    assert any(isinstance(module, fastcnn.Conv2d) for module in model)
    fastcnn.revert(model)
    assert [type(module) for module in model] == [type(module) for module in original]


def test_modules_on_cuda_train_under_autocast() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        fastcnn.Conv2d(9, 16, 3), fastcnn.BatchNormReLU2d(16), fastcnn.GlobalAvgPool2d(), nn.Flatten()
    )
    model.to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, losses = moved(image(torch.float32)), []
    target = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for _ in range(20):
        with torch.autocast(torch.device(DEVICE).type, torch.bfloat16):
            output = model(x)
        loss = (output.float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
