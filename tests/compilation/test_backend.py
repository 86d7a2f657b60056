"""torch.compile(model, backend="fastcnn")."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from compiling import check_value, exact, prepare, random
from torch import Tensor, nn

from fastcnn.compilation import backend as backend_module
from fastcnn.compilation import module
from fastcnn.compilation.backend import fastcnn as backend


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(120, 5)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_backend_runs_any_batch(model: nn.Module, mode: type) -> None:
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for batch in (1, 3, 8, 5):
        image = random(batch, 3, 7, 8, seed=batch)
        with mode():
            output = compiled(image).clone()
        check_value(output, exact(model, image))


@pytest.mark.parametrize(
    "function", [lambda y: y.flatten(2), lambda y: y.view(-1, 2, 2, 5, 6), lambda y: y.unbind(3)[0]]
)
def test_backend_returns_tensors_laid_out_as_eager_ones(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))

    def called(x: Tensor) -> Tensor:
        features = function(model(x)) * 2
        torch._dynamo.graph_break()
        return features.view(len(x), -1)

    for batch in (2, 5):
        image = random(batch, 3, 7, 8)
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(called, backend=backend)(image), called(image))


class Keeps(nn.Module):
    """One part of a broken graph keeps its result on the module for the next one, as networks that are tapped do."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3)
        self.adds, self.line = adds, torch.linspace(0, 1, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.first(x) * self.line
        torch._dynamo.graph_break()
        y: Tensor = self.second(self.kept)
        return y + self.second(x) * self.line[:6] if self.adds else y


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_backend_passes_on_results_that_modules_hold(adds: bool, mode: type, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made: list[int] = []
    monkeypatch.setattr(
        backend_module, "compile_checked", lambda *a, **k: made.append(1) or module.compile_checked(*a, **k)
    )
    model = Keeps(adds).eval()
    compiled = torch.compile(model, backend=backend)
    expected = copy.deepcopy(model)
    for seed in range(6):
        image = random(2, 3, 7, 8, seed=seed)
        with mode():
            torch.testing.assert_close(compiled(image), expected(image), rtol=1e-4, atol=1e-5)
    assert len(made) <= 4
    with torch.no_grad():
        for one in (model, expected):
            one.line.mul_(2)
    with mode():
        torch.testing.assert_close(compiled(image), expected(image), rtol=1e-4, atol=1e-5)


def test_backend_refuses_autocast(model: nn.Module) -> None:
    with torch.no_grad(), torch.autocast("cpu"), pytest.raises(Exception, match=r"without torch\.autocast"):
        torch.compile(model, backend=backend)(random(2, 3, 7, 8))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_backend_returns_images_laid_out_as_eager_ones(layout: torch.memory_format) -> None:
    """What comes after a break in the graph may view them."""
    torch.manual_seed(0)
    model = prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).to(memory_format=layout)

    def called(x: Tensor) -> Tensor:
        features = model(x)
        torch._dynamo.graph_break()
        return features.view(len(x), -1) if layout == torch.contiguous_format else features

    for batch in (2, 5):
        image = random(batch, 3, 7, 8).to(memory_format=layout)
        with torch.no_grad():
            output = torch.compile(called, backend=backend)(image)
            expected = called(image)
        assert output.stride() == expected.stride()
        torch.testing.assert_close(output, expected)


def test_backend_freezes_the_weights(model: nn.Module) -> None:
    compiled, image = torch.compile(model, backend=backend), random(3, 3, 7, 8)
    with torch.no_grad():
        before = compiled(image)
        model[0].weight.mul_(2)
        assert torch.equal(compiled(image), before)
        torch._dynamo.reset()
        check_value(compiled(image), exact(model, image))


def test_backend_keeps_modules_of_one_kind_apart() -> None:
    torch.manual_seed(0)
    models = [prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))) for _ in range(3)]
    compiled = [torch.compile(model, backend=backend) for model in models]
    for seed in range(2):
        image = random(2, 3, 7, 8, seed=seed)
        with torch.no_grad():
            for one, model in zip(compiled, models, strict=True):
                check_value(one(image), exact(model, image))


def test_backend_takes_exchanged_parameters(model: nn.Module) -> None:
    compiled, image = torch.compile(model, backend=backend), random(3, 3, 7, 8)
    with torch.no_grad():
        compiled(image)
        model[0].weight = nn.Parameter(2 * model[0].weight)
        check_value(compiled(image), exact(model, image))


def test_backend_sees_writes_to_a_parameter_that_is_an_argument(model: nn.Module) -> None:
    def called(image: Tensor, prompt: Tensor) -> Tensor:
        return model(image + prompt)  # type: ignore[no-any-return]

    compiled, image, prompt = (
        torch.compile(called, backend=backend),
        random(2, 3, 7, 8),
        nn.Parameter(random(1, 3, 7, 8)),
    )
    with torch.no_grad():
        for _ in range(3):
            check_value(compiled(image, prompt), exact(model, image + prompt))
            prompt.add_(0.5)
        other = nn.Parameter(random(1, 3, 7, 8, seed=9))
        check_value(compiled(image, other), exact(model, image + other))


def test_backend_refuses_dropout_in_training_mode(model: nn.Module) -> None:
    dropping = nn.Sequential(model, nn.Dropout())
    dropping[1].train()
    with torch.no_grad(), pytest.raises(RuntimeError, match="a dropout is in training mode"):
        torch.compile(dropping, backend=backend)(random(2, 3, 7, 8))


def test_backend_refuses_gradients(model: nn.Module) -> None:
    compiled = torch.compile(model, backend=backend)
    with pytest.raises(RuntimeError, match=r"for inference, and has no gradients; call .* under torch.no_grad\(\)"):
        compiled(random(2, 3, 7, 8))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    check_value(compiled(random(2, 3, 7, 8)), exact(model, random(2, 3, 7, 8)))


def test_backend_refuses_training_mode(model: nn.Module) -> None:
    before = model[1].running_mean.clone()
    with torch.no_grad(), pytest.raises(RuntimeError, match="in training mode"):
        torch.compile(model.train(), backend=backend)(random(2, 3, 7, 8))
    assert torch.equal(model[1].running_mean, before)


def test_backend_takes_graphs_in_parts(model: nn.Module) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.model = nn.Conv2d(3, 3, 3, padding=1), model

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            torch._dynamo.graph_break()
            return self.model(x)

    broken = Broken().eval()
    with torch.no_grad():
        image = random(2, 3, 7, 8)
        check_value(torch.compile(broken, backend=backend)(image), exact(broken, image))


def test_backend_is_found_by_its_name() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    module, function = backend.__module__, backend.__name__
    entry = f'[project.entry-points.torch_dynamo_backends]\nfastcnn = "{module}:{function}"'
    assert entry in project.read_text()


def _scaled(scale: Tensor) -> nn.Module:
    """A network whose forward reads a tensor of a closure and a global one."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x * scale) + OFFSET.to(x.dtype)

    torch.manual_seed(0)
    return Scaled().eval()


OFFSET = torch.linspace(1, 2, 4).view(4, 1, 1)


def test_backend_freezes_what_closures_and_globals_hold() -> None:
    scale = torch.rand(3, 1, 1)
    model = _scaled(scale)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        for batch in (1, 3, 8, 3):  # not one of them the tensors' own first size, that of a batch
            output = compiled(random(batch, 3, 7, 8))
            check_value(output, exact(model, random(batch, 3, 7, 8)))


def test_backend_sees_writes_to_what_closures_hold() -> None:
    scale = torch.rand(3, 1, 1)
    model = _scaled(scale)
    compiled, image = torch.compile(model, backend=backend, fullgraph=True), random(2, 3, 7, 8)
    with torch.no_grad():
        for _ in range(3):
            check_value(compiled(image), exact(model, image))
            scale.mul_(2)


def test_backend_passes_on_results_that_closures_hold() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3).eval()

    def forward(x: Tensor) -> Tensor:
        y = conv(x)

        def add(z: Tensor) -> Tensor:
            return conv(z) + y

        torch._dynamo.graph_break()
        return add(x) * y

    compiled = torch.compile(forward, backend=backend)
    with torch.no_grad():
        for seed in range(4):
            image = random(2, 3, 7, 8, seed=seed)
            check_value(compiled(image), exact(conv, image) * 2 * exact(conv, image))
