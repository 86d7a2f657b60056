"""fastcnn.convert and revert on small modules: each trap by itself."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from conversions import calls_of_fused_op, state_of, trace_of
from torch import Tensor, nn

import fastcnn
from fastcnn.conversion.plan import plan


class Block(nn.Module):
    """One ReLU called twice, and a residual."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Norm(nn.Module):
    """A batch norm, and what a subclass does with it."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU()
        self.identity = nn.Identity()


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.running_mean is not None:
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            if module.weight is not None:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def step(model: nn.Module, *inputs: Any, training: bool = True) -> dict[str, Tensor]:
    """Output, gradients and buffers of one step; random numbers from one seed."""
    torch.manual_seed(3)
    model.train(training).zero_grad()
    output = model(*inputs)
    output = output[0] if isinstance(output, tuple) else output
    output.square().sum().backward()
    values = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"output": output.detach(), **values, **{name: b.clone() for name, b in model.named_buffers()}}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(
            left[name], right[name], rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
        )


def check(model: nn.Module, *inputs: Any) -> nn.Module:
    """Converts; values and gradients stay, in training and in evaluation, in float64."""
    model = model.double()
    original = copy.deepcopy(model)
    fastcnn.convert(model)
    for training in (True, False, True):
        assert_same(step(model, *inputs, training=training), step(original, *inputs, training=training))
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 8, 6, 6), dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def test_convert_says_that_nothing_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    fastcnn.convert(nn.Conv2d(3, 4, 3))
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("function", [fastcnn.convert, fastcnn.revert, plan])
def test_convert_refuses_what_is_no_module(function: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, but got list"):
        function([1])


def test_convert_fuses_a_relu_module_called_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = check(seeded(Block), images())
    assert calls_of_fused_op(monkeypatch, lambda: model(images())) == 2
    assert [entry.pattern for entry in plan(model).fused] == ["BatchNorm + ReLU", "BatchNorm + residual + ReLU"]
    assert type(model.relu) is nn.ReLU
    assert isinstance(model, Block)


def test_convert_follows_a_downsampling_put_in_later() -> None:
    model = check(seeded(Block), images())
    model.downsample = nn.Conv2d(8, 8, 1).double()
    original = fastcnn.revert(copy.deepcopy(model))
    assert_same(step(model, images()), step(original, images()))
    fastcnn.convert(model)
    assert len(plan(model).fused) == 2
    assert_same(step(model, images()), step(original, images()))


@pytest.mark.parametrize("target", ["bn1", "relu", "conv1", ""])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_convert_calls_hooks(target: str, when: str, kind: str) -> None:
    seen: list[list[Tensor]] = [[], []]

    def hooked(model: nn.Module, values: list[Tensor]) -> None:
        def keep(module: nn.Module, *args: Any) -> None:
            tensor = args[-1] if isinstance(args[-1], Tensor) else args[-1][0]
            values.append(tensor.detach().clone())

        getattr(model.get_submodule(target), kind)(keep)

    models = [seeded(Block).double() for _ in range(2)]
    for model in models:
        model.relu.inplace = False  # or torch refuses backward hooks
    if when == "before":
        hooked(models[0], seen[0])
    fastcnn.convert(models[0])
    if when == "after":
        hooked(models[0], seen[0])
    hooked(models[1], seen[1])
    inputs = images().requires_grad_()
    assert_same(step(models[0], inputs), step(models[1], inputs))
    assert len(seen[0]) == len(seen[1]) == (2 if target == "relu" else 1)
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_convert_sequential_by_order(monkeypatch: pytest.MonkeyPatch) -> None:
    relu = nn.ReLU()
    layers = [nn.BatchNorm2d(8), relu, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Identity(), relu, nn.BatchNorm2d(8)]
    model = check(seeded(lambda: nn.Sequential(*layers)), images())
    assert calls_of_fused_op(monkeypatch, lambda: model(images())) == 2
    handle = model[1].register_forward_hook(lambda module, args, output: output + 1)
    assert calls_of_fused_op(monkeypatch, lambda: model(images())) == 0  # one ReLU object, hooked, is both
    handle.remove()
    assert calls_of_fused_op(monkeypatch, lambda: model(images())) == 2
    assert isinstance(model[:2], nn.Sequential)
    assert torch.equal(model[:2](images()), model[1](model[0](images())))


def test_convert_batch_norm_1d_with_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = check(seeded(lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU())), images(4, 5))
    assert calls_of_fused_op(monkeypatch, lambda: model(images(4, 5))) == 1


FORWARDS: dict[str, tuple[Callable[[Any, Tensor], Any], str | None]] = {
    "function": (lambda s, x: F.relu(s.bn(x)), None),
    "function in place": (lambda s, x: F.relu(s.bn(x), inplace=True), None),
    "torch.relu": (lambda s, x: torch.relu(s.bn(x)), None),
    "method": (lambda s, x: s.bn(x).relu_(), None),
    "residual first": (lambda s, x: s.relu(x + s.bn(s.conv(x))), None),
    "torch.add": (lambda s, x: s.relu(torch.add(s.bn(s.conv(x)), x)), None),
    "two batch norms": (lambda s, x: s.relu(s.bn(x) + s.other(x)), None),
    "identity": (lambda s, x: s.relu(s.identity(s.bn(x))), None),
    "alpha": (lambda s, x: s.relu(torch.add(s.bn(x), x, alpha=2)), ""),
    "broadcast": (lambda s, x: s.relu(s.bn(x) + x.mean((2, 3), keepdim=True)), None),
    "number": (lambda s, x: s.relu(s.bn(x) + 1.0), ""),
    "used elsewhere": (lambda s, x: (lambda y: s.relu(y) + y)(s.bn(x)), "used elsewhere"),
    "relu in place on what is used later": (lambda s, x: (lambda y: (F.relu_(y), y)[1])(s.bn(x)), "used elsewhere"),
    "sum used elsewhere": (lambda s, x: (lambda y: s.relu(y) * y)(s.bn(x) + x), "used elsewhere"),
    "written between": (
        lambda s, x: (lambda z: (lambda y: (z.mul_(2), s.relu(y) + z)[1])(s.bn(z)))(x * 1),
        "may write",
    ),
    "residual written": (
        lambda s, x: (lambda z: (lambda y: (z.mul_(2), s.relu(y) + z)[1])(s.bn(x) + z))(x * 1),
        "may write",
    ),
    "batch norm into the other": (lambda s, x: s.relu((x * 1).add_(s.bn(x))), "writes to the other"),
    "called twice": (lambda s, x: s.relu(s.bn(s.relu(s.bn(x)))), "more than once"),
    "control flow": (lambda s, x: s.relu(s.bn(x)) if x.sum() > -1e9 else x, "cannot be traced"),
    "autocast": (lambda s, x: _under(torch.autocast("cpu", enabled=False), lambda: s.relu(s.bn(x))), "calls"),
    "no grad": (lambda s, x: _under(torch.no_grad(), lambda: s.bn(x)) * 0 + s.relu(s.other(x)), "calls"),
    "checkpoint": (
        lambda s, x: torch.utils.checkpoint.checkpoint(lambda y: s.relu(s.bn(y)), x, use_reentrant=False),
        "",
    ),
    "random": (lambda s, x: s.relu(s.bn(x)) * (torch.rand(()).item() > 2), ""),
    "own tensor": (lambda s, x: s.relu(s.bn(x)) * torch.tensor(2.0), ""),
    "training": (lambda s, x: s.relu(s.bn(x)) if s.training else s.bn(x), "training"),
    "dropout": (lambda s, x: F.dropout(s.relu(s.bn(x)), 0.5, s.training), None),
    "isinstance": (lambda s, x: s.relu(s.bn(x if isinstance(x, Tensor) else x[0])), None),
}


def _under(context: Any, run: Callable[[], Any]) -> Any:
    with context:
        return run()


@pytest.mark.parametrize("name", FORWARDS)
def test_convert_forward_keeps_its_meaning(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, refused = FORWARDS[name]
    model = seeded(type("Forward", (Norm,), {"forward": lambda self, x: forward(self, x)}))
    report = plan(model)
    x = images(3, 4, 5, 5)
    if "written" in name:  # torch refuses the backward
        original = copy.deepcopy(model).double()
        torch.testing.assert_close(fastcnn.convert(model.double())(x), original(x))
    else:
        model = check(model, x)
    if refused is None:
        assert report.fused and not report.unfused
        expected = 0 if name == "broadcast" else 1  # seen when it runs
        assert calls_of_fused_op(monkeypatch, lambda: model(x)) == expected
    else:
        assert not report.fused
        assert calls_of_fused_op(monkeypatch, lambda: model(x)) == 0
        if refused:
            assert any(refused in entry.reason for entry in report.unfused), report.unfused


def test_convert_list_argument_and_absent_ones() -> None:
    class Optional(Norm):
        def forward(self, x: Any, y: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
            x = torch.cat(x) if isinstance(x, list) else x
            out = self.bn(x)
            return self.relu(out if y is None else out + y) * scale

    model = seeded(Optional).double()
    original = copy.deepcopy(model)
    fastcnn.convert(model)
    x = images(2, 4, 5, 5)
    for args, kwargs in (((x,), {}), ((x, x), {}), ((x, None), {}), (([x, x],), {}), ((x,), {"y": x, "scale": 2.0})):
        assert torch.equal(model(*args, **kwargs), fused_free(model, *args, **kwargs))
        torch.testing.assert_close(model(*args, **kwargs), original.train()(*args, **kwargs))


def fused_free(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """The converted model's forward run layer by layer, as with a hook."""
    handle = model.bn.register_forward_hook(lambda *_: None)
    output: Tensor = model(*args, **kwargs)
    handle.remove()
    return output


def copies(tmp_path: Path) -> dict[str, Callable[[nn.Module], nn.Module]]:
    def saved(model: nn.Module) -> nn.Module:
        torch.save(model, tmp_path / "model.pt")
        loaded: nn.Module = torch.load(tmp_path / "model.pt", weights_only=False)
        return loaded

    return {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": saved}


class MyConv(nn.Conv2d):
    """A subclass that leaves the forward alone."""


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(MyConv(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True))
        self.block = Block()
        self.pool = nn.AdaptiveAvgPool2d((2, None))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.block(self.stem(x)))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_convert_survives_copies(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(Whole).double()
    before = trace_of(model)
    fastcnn.convert(model)
    replica = copies(tmp_path)[how](model)
    x = images(2, 3, 15, 15)
    assert [type(m) for m in replica.modules()] == [type(m) for m in model.modules()]
    assert calls_of_fused_op(monkeypatch, lambda: replica(x)) == 3
    model(x)
    assert_same(step(replica, x), step(model, x))
    fastcnn.revert(replica)
    assert trace_of(replica) == before
    assert_same(step(replica, x), step(model, x))
    assert type(model.block) is not Block  # the copy's way back is its own


def test_convert_and_revert_are_exact_after_training() -> None:
    model = seeded(Whole)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x = images(2, 3, 15, 15).float()
    step(model, x)
    optimizer.step()
    state, before = state_of(model), trace_of(model)
    fastcnn.convert(model)
    assert state_of(model) == state
    assert model.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    step(model, x)
    optimizer.step()
    values = {key: value.clone() for key, value in model.state_dict().items()}
    fastcnn.revert(model)
    assert state_of(model) == state
    assert trace_of(model) == before
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    step(model, x)
    optimizer.step()


def test_convert_optimizer_steps_as_torch() -> None:
    ours, theirs = seeded(Whole).double(), seeded(Whole).double()
    optimizers = [torch.optim.SGD(model.parameters(), 0.01, momentum=0.9) for model in (ours, theirs)]
    x = images(2, 3, 15, 15)
    for at in range(3):
        if at == 1:
            fastcnn.convert(ours)
        assert_same(step(ours, x), step(theirs, x))
        for optimizer in optimizers:
            optimizer.step()


def test_convert_loads_a_state_dict() -> None:
    model, other = fastcnn.convert(seeded(Whole).double()), Whole().double()
    model.load_state_dict(other.state_dict())
    x = images(2, 3, 15, 15)
    assert_same(step(model, x), step(other, x))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))


def test_convert_twice_converts_what_was_added() -> None:
    model = fastcnn.convert(nn.Sequential(nn.Conv2d(8, 8, 3)))
    classes = [type(m) for m in model.modules()]
    fastcnn.convert(model)
    assert [type(m) for m in model.modules()] == classes
    model.append(nn.BatchNorm2d(8)).append(nn.ReLU())
    fastcnn.convert(model)
    assert [entry.name for entry in plan(model).fused] == ["1"]
    assert [type(m) for m in fastcnn.revert(model).modules()] == [nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU]


def test_convert_leaves_native_layers_of_fastcnn() -> None:
    model = nn.Sequential(
        fastcnn.Conv2d(8, 8, 3, activation="relu"), fastcnn.BatchNormReLU2d(8), fastcnn.BatchNorm2d(8)
    )
    classes = [type(m) for m in model]
    fastcnn.revert(fastcnn.convert(model))
    assert [type(m) for m in model] == classes


@pytest.mark.parametrize("name", ["googlenet", "densenet"])
def test_convert_in_evaluation_then_train(name: str) -> None:
    models = architectures.torchvision_models
    torch.manual_seed(0)
    if name == "googlenet":
        model = models.GoogLeNet(num_classes=10, aux_logits=True, init_weights=False)
    else:
        model = models.DenseNet(8, (2, 2), 16, num_classes=10, drop_rate=0.2)
    model = model.double().eval()
    original = copy.deepcopy(model)
    fastcnn.convert(model)
    # Dropout draws in the order of memory, which converted convolutions make channels_last.
    x = images(2, 3, 64, 64).to(memory_format=torch.channels_last)
    ours, theirs = step(model, x), step(original, x)
    assert_same(ours, theirs)
    plain = copy.deepcopy(model)
    torch.manual_seed(7)
    assert not torch.allclose(_first(plain.train()(x)), _first(plain.train()(x)))  # dropout draws
    assert_same(step(model, x, training=False), step(original, x, training=False))


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * 2, bias)


class OwnCheck(nn.BatchNorm2d):
    def _check_input_dim(self, input: Tensor) -> None:
        pass


def kept_layers() -> dict[str, tuple[nn.Module, str]]:
    patched = nn.Conv2d(4, 4, 1)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    parametrized = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    return {
        "forward": (OwnForward(4, 4, 1), "its own forward"),
        "_conv_forward": (OwnConvForward(4, 4, 1), "_conv_forward"),
        "_check_input_dim": (OwnCheck(4), "_check_input_dim"),
        "instance": (patched, "forward of its own"),
        "parametrized": (parametrized, "parametrized"),
        "lazy": (nn.LazyConv2d(4, 1), "first input"),
        "script": (torch.jit.script(nn.Conv2d(4, 4, 1)), "TorchScript"),
        "complex": (nn.Conv2d(4, 4, 1, dtype=torch.complex64), "complex64"),
        "float8": (nn.Conv2d(4, 4, 1).to(torch.float8_e4m3fn), "float8"),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", kept_layers())
def test_convert_keeps_what_it_cannot_stand_for(name: str) -> None:
    layer, reason = kept_layers()[name]
    model = nn.Sequential(layer, nn.Conv2d(4, 4, 1))
    cls = type(layer)
    fastcnn.convert(model)
    assert type(model[0]) is cls
    assert type(model[1]) is fastcnn.Conv2d
    assert reason in plan(model).kept["0"]
    fastcnn.revert(model)


def test_convert_lazy_layer_after_its_first_input() -> None:
    model = fastcnn.convert(nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d(), nn.ReLU()))
    model(torch.randn(2, 3, 4, 4))
    fastcnn.convert(model)
    assert type(model[0]) is fastcnn.Conv2d
    assert [entry.name for entry in plan(model).fused] == ["1"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_convert_pruned_and_weight_normed() -> None:
    def make() -> nn.Module:
        model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))).double()
        nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
        nn.utils.weight_norm(model[1])
        return model

    ours, theirs = make(), make()
    before = trace_of(ours)
    fastcnn.convert(ours)
    assert all(isinstance(layer, fastcnn.Conv2d) for layer in ours)
    assert_same(step(ours, images(2, 3, 9, 9)), step(theirs, images(2, 3, 9, 9)))
    fastcnn.revert(ours)
    assert trace_of(ours) == before


def test_convert_then_parametrize() -> None:
    model = fastcnn.convert(nn.Sequential(nn.Conv2d(3, 8, 3)).double())
    nn.utils.parametrizations.weight_norm(model[0])
    original = fastcnn.revert(copy.deepcopy(model))
    assert isinstance(model[0], fastcnn.Conv2d)
    assert not isinstance(original[0], fastcnn.Conv2d)
    assert_same(step(model, images(2, 3, 9, 9)), step(original, images(2, 3, 9, 9)))
    nn.utils.parametrize.remove_parametrizations(original[0], "weight")
    assert type(original[0]) is nn.Conv2d
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert type(fastcnn.revert(model)[0]) is nn.Conv2d


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (4, 1, 3, 3), (4, 3, 1, 1), (4, 3, 3, 3)], ids=str)
def test_convert_weight_layout_in_place(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for device in ("cpu", "meta"):
        layer = nn.Conv2d(shape[1], shape[0], shape[2], dtype=dtype, device=device)
        weight, strides = layer.weight, layer.weight.stride()
        fastcnn.convert(layer)
        assert layer.weight is weight
        expected = torch.empty(shape, device=device).to(memory_format=torch.channels_last).stride()
        assert weight.stride() == expected
        fastcnn.revert(layer)
        assert layer.weight is weight
        assert weight.stride() == strides


def test_convert_shared_weights_and_memory() -> None:
    first, second = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    second.weight = first.weight
    flat = torch.randn(2, 4, 4, 3, 3)
    third = nn.Conv2d(4, 4, 3)
    third.weight = nn.Parameter(flat[0])
    fastcnn.convert(nn.Sequential(first, second, third))
    assert second.weight is first.weight
    assert first.weight.is_contiguous(memory_format=torch.channels_last)
    assert third.weight.data_ptr() == flat.data_ptr()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 3, 8, 8)),
        (nn.MaxPool2d(2, return_indices=True), (2, 3, 7, 7)),
        (nn.MaxPool2d((3, 2), (2, 1), (1, 0), dilation=(1, 2)), (2, 3, 9, 9)),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 3, 8, 8)),
        (nn.AvgPool2d(2, divisor_override=3), (3, 8, 8)),
        (nn.AdaptiveAvgPool2d((None, 3)), (2, 3, 8, 8)),
        (nn.AdaptiveAvgPool2d(1), (3, 8, 8)),
        (nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), (2, 3, 8, 8)),
        (nn.Conv2d(3, 6, 3, groups=3, dilation=2, padding="same"), (3, 8, 8)),
        (nn.BatchNorm2d(3, momentum=None), (2, 3, 4, 4)),
        (nn.BatchNorm2d(3, affine=False, track_running_stats=False), (2, 3, 4, 4)),
        (nn.BatchNorm1d(3), (4, 3, 5)),
    ],
    ids=str,
)
def test_convert_layer_as_torch(layer: nn.Module, shape: tuple[int, ...]) -> None:
    original, layer = copy.deepcopy(layer).double(), copy.deepcopy(layer).double()
    fastcnn.convert(layer)
    assert type(layer) is not type(original)
    assert isinstance(layer, type(original))
    for _ in range(2):
        torch.testing.assert_close(layer(images(*shape)), original(images(*shape)))
    assert_close_state(layer, original)


def assert_close_state(left: nn.Module, right: nn.Module) -> None:
    for ours, theirs in zip(left.buffers(), right.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_convert_wrapped_models() -> None:
    x = images(2, 3, 15, 15)
    original = seeded(Whole).double()
    for wrap in (nn.DataParallel, lambda m: torch.compile(m, backend="eager")):
        model = fastcnn.convert(wrap(copy.deepcopy(original)))
        assert any(isinstance(module, fastcnn.Conv2d) for module in model.modules())
        torch.testing.assert_close(model(x), copy.deepcopy(original)(x))
        fastcnn.revert(model)


def test_convert_compiles_and_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(Whole).double()
    original = copy.deepcopy(model)
    fastcnn.convert(model)
    x = images(2, 3, 15, 15)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for training in (True, False):
        assert_same(
            {k.removeprefix("_orig_mod."): v for k, v in step(compiled, x, training=training).items()},
            step(original, x, training=training),
        )
    for strict in (False, True):
        program = torch.export.export(model.eval(), (x,), strict=strict)
        torch.testing.assert_close(program.module()(x), original.eval()(x))
        assert sum("batch_norm_infer" in str(node.target) for node in program.graph.nodes) == 3


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), Block])
def test_convert_hooked_pair_fuses_when_the_hook_is_gone(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = seeded(make).double()
    relu = next(module for module in model.modules() if isinstance(module, nn.ReLU))
    handle = relu.register_forward_hook(lambda *_: None)
    fastcnn.convert(model)
    assert not plan(model).fused
    assert all("hooks" in entry.reason for entry in plan(model).unfused)
    assert calls_of_fused_op(monkeypatch, lambda: model(images())) == 0
    handle.remove()
    assert not plan(model).unfused
    assert calls_of_fused_op(monkeypatch, lambda: model(images())) == len(plan(model).fused)


def test_convert_spawned_process_gets_the_model() -> None:
    model = fastcnn.models.resnet(layers="torch", in_channels=1).eval()
    fastcnn.convert(model)
    data = pickle.dumps(model)
    x = torch.ones(1, 1, 32, 32)
    code = (
        "import pickle, sys, torch; model = pickle.load(sys.stdin.buffer);"
        "from fastcnn.conversion.plan import plan;"
        "print(len(plan(model).fused), float(model(torch.ones(1, 1, 32, 32)).sum()))"
    )
    result = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    fused_there, total = result.stdout.split()
    assert int(fused_there) == len(plan(model).fused) > 0
    assert float(total) == pytest.approx(float(model(x).sum()), rel=1e-5)
