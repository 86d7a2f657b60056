"""plan and explain: batch norms whose ReLU is in another module are listed, with the reason."""

from __future__ import annotations

from collections.abc import Callable

import architectures
import pytest
import torch
from torch import Tensor, nn

import fastcnn
from fastcnn.conversion.plan import plan

ELSEWHERE = "its ReLU is in another module"


class ConvNorm(nn.Module):
    """A batch norm at the end of a module that is no Sequential; what runs between is for subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.bn(self.conv(x)))


class Scaled(ConvNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * 2


class Untraceable(ConvNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) if x.sum() > 0 else x


class Parent(nn.Module):
    """Adds and calls ReLU for its child."""

    def __init__(self, child: nn.Module, residual: bool) -> None:
        super().__init__()
        self.child, self.residual, self.after = child, residual, nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.child(x)
        return self.relu(self.after(y + x if self.residual else y))


def nested() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(ConvNorm(), nn.Identity()))


CASES: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "module": (lambda: Parent(ConvNorm(), False), "child.bn"),
    "module and residual": (lambda: Parent(ConvNorm(), True), "child.bn"),
    "modules in modules": (lambda: Parent(nested(), True), "child.1.0.bn"),
    "Sequential": (lambda: nn.Sequential(nested(), nn.Identity(), nn.ReLU()), "0.1.0.bn"),
    "deep in a model": (lambda: nn.Sequential(nn.Identity(), Parent(nested(), True)), "1.child.1.0.bn"),
    "something after the batch norm": (lambda: Parent(Scaled(), True), None),
    "another module after the batch norm": (lambda: Parent(nn.Sequential(ConvNorm(), nn.Sigmoid()), True), None),
    "untraceable": (lambda: Parent(Untraceable(), True), None),
    "another activation": (lambda: nn.Sequential(ConvNorm(), nn.SiLU()), None),
}


@pytest.mark.parametrize("name", CASES)
def test_plan_lists_batch_norms_whose_relu_is_in_another_module(name: str) -> None:
    make, norm = CASES[name]
    model = make()
    for _ in range(2):  # before the conversion, and after it
        report = plan(model)
        assert not report.fused
        elsewhere = [entry for entry in report.unfused if entry.reason == ELSEWHERE]
        assert [entry.name for entry in elsewhere] == ([] if norm is None else [norm])
        assert all(
            ("residual" in entry.pattern) == ("child" in entry.name and model_adds(model)) for entry in elsewhere
        )
        fastcnn.convert(model)
    x = torch.randn(2, 4, 3, 3)
    before = model.eval()(x)
    torch.testing.assert_close(fastcnn.revert(model)(x), before)


def model_adds(model: nn.Module) -> bool:
    return any(isinstance(module, Parent) and module.residual for module in model.modules())


def test_plan_says_what_lies_between_sum_and_relu() -> None:
    report = plan(Parent(nn.BatchNorm2d(4), True))
    assert [(entry.name, entry.reason) for entry in report.unfused] == [
        ("child", "an nn.Identity lies between the sum and the ReLU")
    ]


@pytest.mark.parametrize(("name", "fused", "unfused"), [("regnetx_002", 27, 13), ("gernet_s", 26, 14)])
def test_plan_accounts_for_every_relu_of_timms_regnets(name: str, fused: int, unfused: int) -> None:
    model = architectures.build("timm", name)
    report = plan(model)
    assert (len(report.fused), len(report.unfused)) == (fused, unfused)
    assert {(entry.pattern, entry.reason) for entry in report.unfused} == {("BatchNorm + residual + ReLU", ELSEWHERE)}


def test_explain_lists_batch_norms_whose_relu_is_in_another_module(capsys: pytest.CaptureFixture[str]) -> None:
    found = fastcnn.explain(Parent(ConvNorm(), True).eval(), torch.randn(1, 4, 3, 3), seconds=0.01)
    assert ("child.bn", "BatchNorm + residual + ReLU", ELSEWHERE) in found.unfused
    assert f"BatchNorm + residual + ReLU: {ELSEWHERE}: child.bn" in capsys.readouterr().out
