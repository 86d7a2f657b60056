"""fastcnn.revert: the layout of a weight that has got another name since its conversion."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fastcnn

RENAME: dict[str, Callable[[nn.Module], object]] = {
    "parametrized": lambda layer: nn.utils.parametrizations.spectral_norm(layer),
    "parametrized as two": lambda layer: nn.utils.parametrizations.weight_norm(layer),
    "weight_norm": lambda layer: nn.utils.weight_norm(layer),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", RENAME)
def test_revert_restores_the_layout_of_a_weight_renamed_since(how: str) -> None:
    layer = fastcnn.convert(nn.Conv2d(3, 8, 3))
    RENAME[how](layer)
    values = {name: parameter.clone() for name, parameter in layer.named_parameters()}
    assert any(p.shape == (8, 3, 3, 3) and not p.is_contiguous() for p in layer.parameters())
    fastcnn.revert(layer)
    assert isinstance(layer, nn.Conv2d) and not isinstance(layer, fastcnn.Conv2d)
    for name, parameter in layer.named_parameters():
        assert parameter.is_contiguous(), name
        assert torch.equal(parameter, values[name])
