"""What fastcnn.convert leaves as it was: every torchvision classifier, as far as its structure goes."""

from __future__ import annotations

import architectures
import pytest
from conversions import check_structure
from torch import nn

from fastcnn.conversion.plan import plan

# Families without convolution, pooling or BatchNorm would come out unchanged; torchvision has none.
UNCHANGED: set[str] = set()
ALL = architectures.torchvision_models.list_models(module=architectures.torchvision_models)
QUICK = (
    "alexnet",
    "densenet121",
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "regnet_y_400mf",
    "resnet50",
    "vit_b_16",
)


def check(name: str) -> None:
    model = architectures.on_meta(name)
    assert (check_structure(model) == 0) == (name in UNCHANGED)


@pytest.mark.parametrize("name", QUICK)
def test_convert_torchvision_and_back(name: str) -> None:
    check(name)


@pytest.mark.parametrize(
    ("library", "name"),
    [("torchvision", "resnet18"), ("torchvision", "mobilenet_v2"), ("torchvision", "shufflenet_v2_x0_5"),
     ("timm", "ghostnet_050"), ("timm", "resnet10t")],
)  # fmt: skip
def test_convert_and_back_leaves_the_values(library: str, name: str) -> None:
    assert check_structure(architectures.build(library, name)) > 0


@pytest.mark.models
@pytest.mark.parametrize("name", [name for name in ALL if name not in QUICK])
def test_convert_all_torchvision_and_back(name: str) -> None:
    check(name)


@pytest.mark.parametrize(
    ("name", "fused", "unfused"),
    [("resnet50", 49, 0), ("densenet121", 120, 1), ("inception_v3", 96, 0), ("vgg11_bn", 8, 0)],
)
def test_convert_fuses_every_batch_norm_with_relu(name: str, fused: int, unfused: int) -> None:
    model = architectures.on_meta(name)
    before = plan(model)
    assert (len(before.fused), len(before.unfused)) == (fused, unfused)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert len({entry.name for entry in before.fused}) == fused <= norms
