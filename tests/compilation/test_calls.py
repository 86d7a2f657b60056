"""What a compiled module takes and refuses, and what becomes of it: copies, pickles, threads, new weights."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from compiling import check, check_value, compile_and_check, exact, prepare, random
from conditions import LAYOUTS, with_layout
from threads import run_in_threads
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import fastcnn
from fastcnn.compilation import CompiledModule


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm_a, self.norm_b = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))


def network() -> nn.Module:
    torch.manual_seed(0)
    head = (nn.Flatten(), nn.Dropout(), nn.Linear(4 * 5 * 6, 10), nn.ReLU(), nn.Linear(10, 3))
    return prepare(nn.Sequential(nn.Conv2d(3, 4, 3), Block(), Block(), *head))


@pytest.fixture
def model() -> nn.Module:
    return network()


@pytest.fixture
def compiled(model: nn.Module) -> CompiledModule:
    return fastcnn.compile(model, random(1, 3, 7, 8))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_takes_any_layout(model: nn.Module, compiled: CompiledModule, layout: str) -> None:
    check(compiled, model, with_layout(random(2, 3, 7, 8), layout))


def test_compiled_leaves_model_and_input_alone(model: nn.Module) -> None:
    state = copy.deepcopy(model.state_dict())
    image = random(2, 3, 7, 8)
    before = image.clone()
    fastcnn.compile(model, image)(image)
    assert torch.equal(image, before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_compiled_takes_an_empty_batch(model: nn.Module, compiled: CompiledModule) -> None:
    assert compiled(random(0, 3, 7, 8)).shape == (0, 3)


def test_compiled_reshapes_an_empty_batch() -> None:
    shaped = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Unflatten(1, (2, 10, 6)), nn.Sigmoid()).eval()
    compiled = fastcnn.compile(shaped, random(1, 3, 7, 8))
    for batch in (0, 1, 3):
        check(compiled, shaped, random(batch, 3, 7, 8))


def test_compiled_ignores_autocast() -> None:
    torch.manual_seed(0)
    up = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Conv2d(3, 2, 3)).eval()
    compiled = fastcnn.compile(up, random(1, 3, 6, 6))
    with torch.no_grad(), torch.autocast("cpu"):
        inside = fastcnn.compile(up, random(1, 3, 6, 6))
        compiled.refresh(up)
        for one in (compiled, inside):
            check_value(one(random(2, 3, 6, 6)), exact(up, random(2, 3, 6, 6)))
    assert str(inside.report()) == str(compiled.report())


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        (random(2, 3, 8, 8), RuntimeError, r"size \[N, 3, 7, 8\].*got size \[2, 3, 8, 8\]"),
        (random(2, 3, 7, 7), RuntimeError, r"size \[N, 3, 7, 8\].*got size \[2, 3, 7, 7\]"),
        (random(2, 4, 7, 8), RuntimeError, r"size \[N, 3, 7, 8\].*got size \[2, 4, 7, 8\]"),
        (random(3, 7, 8), RuntimeError, r"size \[N, 3, 7, 8\].*got size \[3, 7, 8\]"),
        (torch.tensor(1.0), RuntimeError, r"size \[N, 3, 7, 8\].*got size \[\]"),
        (random(2, 3, 7, 8).double(), RuntimeError, "expected .* scalar type torch.float32 but found torch.float64"),
        (random(2, 3, 7, 8).to("meta"), RuntimeError, "expected all tensors on the CPU, but .* is on meta"),
        (random(2, 3, 7, 8).requires_grad_(), RuntimeError, "requires grad"),
        ([1.0], TypeError, "must be Tensor, not list"),
    ],
    ids=["height", "width", "channels", "rank", "scalar", "dtype", "device", "grad", "type"],
)
def test_compiled_refuses(compiled: CompiledModule, argument: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compiled(argument)


def test_compiled_refuses_another_number_of_inputs(compiled: CompiledModule) -> None:
    with pytest.raises(TypeError, match=r"takes 1 positional arguments .* but 2 were given"):
        compiled(random(2, 3, 7, 8), random(2, 3, 7, 8))


def test_compiled_takes_what_requires_grad_without_gradients(model: nn.Module, compiled: CompiledModule) -> None:
    image = random(2, 3, 7, 8).requires_grad_()
    with torch.no_grad():
        assert not compiled(image).requires_grad
    with torch.inference_mode():
        check_value(compiled(image).clone(), exact(model, image))


def test_compile_refuses_training_mode(model: nn.Module) -> None:
    model[1].norm_a.train()
    with pytest.raises(RuntimeError, match=r"evaluation mode.*'1.norm_a' is in training mode; call model.eval\(\)"):
        fastcnn.compile(model, random(1, 3, 7, 8))
    with pytest.raises(RuntimeError, match=r"it is in training mode"):
        fastcnn.compile(model.train(), random(1, 3, 7, 8))


def test_compile_refuses_other_dtypes_and_devices(model: nn.Module) -> None:
    with pytest.raises(RuntimeError, match=r"torch.float32, but 0.weight is torch.float64"):
        fastcnn.compile(copy.deepcopy(model).double(), random(1, 3, 7, 8).double())
    with pytest.raises(RuntimeError, match=r"on the CPU, but 0.weight is on meta"):
        fastcnn.compile(copy.deepcopy(model).to("meta"), random(1, 3, 7, 8))


def test_compile_refuses_to_compute_in_other_dtypes(model: nn.Module) -> None:
    assert fastcnn.compile(model, random(1, 3, 7, 8), dtype=torch.float32)(random(2, 3, 7, 8)).dtype == torch.float32
    with pytest.raises(NotImplementedError, match=r"dtype torch.float32, the one supported, but got torch.bfloat16"):
        fastcnn.compile(model, random(1, 3, 7, 8), dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"to be a torch.dtype, but got 'float32'"):
        fastcnn.compile(model, random(1, 3, 7, 8), dtype="float32")


@pytest.mark.parametrize(
    ("examples", "error", "message"),
    [
        ([3], TypeError, "example input 0 to be a Tensor"),
        (torch.tensor(1.0), TypeError, "example input 0 to be a Tensor"),
        ((random(1, 3, 7, 8), random(2, 3)), ValueError, r"one batch size, but got \[1, 2\]"),
        (random(0, 3, 7, 8), ValueError, "batch 1 or more"),
    ],
    ids=["int", "scalar", "batches", "empty"],
)
def test_compile_refuses_examples(model: nn.Module, examples: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastcnn.compile(model, examples)


class ManyInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(5, 4, 1)
        self.linear = nn.Linear(7, 4)

    def forward(self, image: Tensor, other: Tensor, vector: Tensor) -> dict[str, Any]:
        a, b = self.conv(image), self.other(other)
        return {"sum": a + b, "list": [F.relu(a), (b, None)], "vector": self.linear(vector), "image": image}


def test_compiled_takes_and_returns_several_tensors() -> None:
    model = ManyInputs().eval()
    compiled = fastcnn.compile(model, (random(1, 3, 6, 7), random(1, 5, 4, 5), random(1, 7)))
    inputs = random(3, 3, 6, 7), random(3, 5, 4, 5), random(3, 7)
    output = compiled(*inputs)
    expected = exact(model, *inputs)
    assert list(output) == list(expected) and output["list"][1][1] is None
    for actual, truth in [
        (output["sum"], expected["sum"]),
        (output["list"][0], expected["list"][0]),
        (output["list"][1][0], expected["list"][1][0]),
        (output["vector"], expected["vector"]),
        (output["image"], expected["image"]),
    ]:
        check_value(actual, truth)
    assert output["image"].data_ptr() != inputs[0].data_ptr()
    with pytest.raises(RuntimeError, match=r"expected other of batch 3, but got size"):
        compiled(inputs[0], random(2, 5, 4, 5), inputs[2])


class Returns(nn.Module):
    """A convolution, and what a function of it and the module returns."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv, self.linear, self.function = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), function
        self.anchors = nn.Buffer(torch.arange(4.0), persistent=False)
        self.wide = torch.tensor([1e300], dtype=torch.float64)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.conv(x))


def test_compiled_returns_memory_of_its_own() -> None:
    compiled = fastcnn.compile(Returns(lambda m, y: (y, y.clone(), m.anchors[None])).eval(), random(1, 3, 5, 6))
    image = random(2, 3, 5, 6)
    before = [value.clone() for value in compiled(image)]
    value, copied, anchors = compiled(image)
    for tensor in (value, anchors):
        tensor.zero_()
    assert torch.equal(copied, before[1])
    assert all(torch.equal(a, b) for a, b in zip(compiled(image), before, strict=True))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x, y: (x.clone().flatten(1), x.clone().permute(0, 2, 3, 1), x.clone().detach()),
        lambda m, x, y: (y, y.clone().detach(), y.detach().clone()),
        lambda m, x, y: (y, y.clone().permute(0, 2, 3, 1), y.contiguous().flatten(1).clone()),
        lambda m, x, y: (y, torch.cat([y], 1)),
        lambda m, x, y: (torch.cat([y, y + 1], 1), torch.cat([y, y + 1], 1), torch.cat([y, y], 1)),
        lambda m, x, y: (m.anchors[None].expand(y.shape[0], -1), m.anchors[None].expand(y.shape[0], -1)),
        lambda m, x, y: y.tanh().chunk(2, 1),
        lambda m, x, y: (y, y.permute(0, 2, 3, 1).flatten(1)),
        lambda m, x, y: (y, y.view(-1, 2, 2, 3, 4).permute(0, 3, 4, 1, 2).reshape(y.shape[0], -1, 2)),
        lambda m, x, y: (torch.einsum("nchw->nhwc", x.clone()), y, torch.einsum("nchw->nhwc", y.clone())),
        lambda m, x, y: (lambda z: [torch.cat([y, z], 1).permute(0, 2, 3, 1) for _ in range(2)])(F.relu(y)),
        lambda m, x, y: (y, F.alpha_dropout(y.clone(), 0.5, False), y.clone().type_as(y)),
    ],
    ids=[
        *("of the input", "copies", "views", "concat of one", "equal concats", "of a constant", "parts"),
        *("reshaped channels", "reshaped heads", "einsum", "views of equal concats", "other views"),
    ],
)
def test_compiled_results_share_no_memory(function: Any) -> None:
    class Model(Returns):
        def forward(self, x: Tensor) -> Any:
            return function(self, x, self.conv(x))

    model, image = prepare(Model(None)), random(2, 3, 5, 6)
    compiled, given = fastcnn.compile(model, random(1, 3, 5, 6)), image.clone()
    expected = exact(model, image)
    for index in range(len(expected)):
        results = compiled(given)
        results[index].fill_(torch.nan)
        for place, (got, wanted) in enumerate(zip(results, expected, strict=True)):
            if place != index:
                check_value(got, wanted)
        assert torch.equal(given, image)


def test_compiled_writes_in_place_in_the_dtype_that_is_written_to() -> None:
    class Model(Returns):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y += self.wide[0] * 1e-300
            return F.relu(self.conv(F.pad(y, (1, 1, 1, 1))[:, :3]))

    model = prepare(Model(None))
    compiled = fastcnn.compile(model, random(1, 3, 5, 6))
    assert compiled(random(2, 3, 5, 6)).dtype == torch.float32
    check_value(compiled(random(2, 3, 5, 6)), exact(model, random(2, 3, 5, 6)))


@pytest.mark.parametrize("sizes", [(), (1,), (1, 2)])
def test_compiled_linear_layers_may_have_a_bias_for_all(sizes: tuple[int, ...]) -> None:
    class Model(Returns):
        def __init__(self) -> None:
            super().__init__(None)
            self.bias = nn.Parameter(torch.randn(sizes))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.conv(x).mean((2, 3)), self.linear.weight, self.bias)

    compile_and_check(Model(), 3, 5, 6)


def test_compiled_returns_ordered_dicts_and_sizes(tmp_path: Path) -> None:
    model = Returns(lambda m, y: OrderedDict(out=y, aux=(y.shape[0], None))).eval()
    compiled = fastcnn.compile(model, random(1, 3, 5, 6))
    compiled.save(tmp_path / "file")
    for each in (compiled, fastcnn.load(tmp_path / "file")):
        output = each(random(3, 3, 5, 6))
        assert type(output) is OrderedDict and list(output) == ["out", "aux"] and output["aux"] == (3, None)
        check_value(output["out"], exact(model, random(3, 3, 5, 6))["out"])


def test_compiled_returns_contiguous_tensors_where_the_model_asks_for_them() -> None:
    model = Returns(lambda m, y: y.permute(0, 2, 3, 1).contiguous()).eval()
    output = fastcnn.compile(model, random(1, 3, 5, 6))(random(2, 3, 5, 6))
    assert output.is_contiguous()
    check_value(output, exact(model, random(2, 3, 5, 6)))


def test_compiled_keeps_constants_of_torch_operators_in_float64() -> None:
    compiled = fastcnn.compile(Returns(lambda m, y: (y.double() * m.wide, m.wide + 0)).eval(), random(1, 3, 5, 6))
    product, constant = compiled(random(2, 3, 5, 6))
    assert product.dtype == constant.dtype == torch.float64
    assert bool(product.isfinite().all()) and float(constant) == 1e300


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, y: y.amax((2, 3), keepdim=True).squeeze((0, 2, 3)), r"returns size \[4\], and compiled \[1, 4\]"),
        (lambda m, y: m.linear(y.amax((2, 3), keepdim=True).squeeze()), r"for one .*squeeze"),
        (lambda m, y: y if y.shape[0] > 1 else y * 0, r"returns other values"),
        (lambda m, y: (y if y.shape[0] > 1 else y * 0, y.argmax(1), y.median()), r"returns other values"),
    ],
    ids=["squeezed", "squeezed before a layer", "branch", "branch beside operators that files may not name"],
)
def test_compile_refuses_models_that_treat_one_image_apart(function: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        fastcnn.compile(Returns(function).eval(), random(1, 3, 5, 6))


class Centered(nn.Module):
    """Weights of mean 0 and variance 1 for each output, as batch norm computes them."""

    def forward(self, weight: Tensor) -> Tensor:
        flat = weight.reshape(1, len(weight), -1)
        return F.batch_norm(flat, None, None, training=True).reshape_as(weight)


def standardized(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Centered())
    return layer


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal, standardized])
def test_compile_computes_what_weights_are_made_of_once(wrap: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), wrap(nn.Linear(48, 5)))
    report = compile_and_check(model, 3, 5, 6).report()
    assert not report.aten and len(report.steps) == 2


def test_compile_leaves_large_constants_to_be_computed() -> None:
    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.line.expand(1, 2**20).reshape(1, 1, 1024, 1024)[..., :5, :6]

    compiled = compile_and_check(Grid(), 3, 5, 6)
    assert compiled.report().constant_bytes < 2**20


def test_compile_refuses_statistics_that_a_call_updates() -> None:
    model = Returns(lambda m, y: F.instance_norm(y, m.anchors, m.anchors, use_input_stats=True)).eval()
    with pytest.raises(RuntimeError, match=r"leaves its buffers alone"):
        fastcnn.compile(model, random(1, 3, 5, 6))


def test_compile_refuses_weights_that_a_call_writes() -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor) -> Any:
            with torch.no_grad():
                self.conv.weight.clamp_(-0.01, 0.01)
            return self.conv(x)

    with pytest.raises(RuntimeError, match=r"leaves its weights alone, but it writes to 'conv\.weight'"):
        fastcnn.compile(Clamped().eval(), random(1, 3, 5, 6))


def _ranks(self: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    a, b = F.adaptive_avg_pool2d(y, 1), F.adaptive_max_pool2d(y, 1)
    flat = F.softmax(torch.cat([a.flatten(1), b.flatten(1)], 1), 1)
    return F.softmax(torch.cat([a, b], 1), 1) * flat.sum(), flat


def _ranks_in_reverse(self: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    a, b = F.adaptive_avg_pool2d(y, 1), F.avg_pool2d(y, (3, 4))
    whole = F.softmax(torch.cat([a, b], 1), 1)
    return whole, F.softmax(torch.cat([a.flatten(1), b.flatten(1)], 1), 1)


def _view_as(self: Any, y: Tensor) -> Tensor:
    return y.contiguous().view_as(torch.tanh(y).flatten(1)) * 2


def _wide(self: Any, y: Tensor) -> Tensor:
    return F.relu(y[:, :1, :1, :1].expand(-1, 1, 1, 2**20 + 1) * 2)


@pytest.mark.parametrize("function", [_ranks, _ranks_in_reverse, _view_as, _wide])
def test_compiled_follows_shapes(function: Any) -> None:
    compile_and_check(Returns(function), 3, 5, 6, batches=(1, 2))


def test_compiled_runs_a_shared_module_twice() -> None:
    torch.manual_seed(0)
    conv, norm, relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
    compiled = compile_and_check(nn.Sequential(conv, norm, relu, conv, relu, conv, norm), 3, 5, 6)
    assert len(compiled.report().steps) == 3


def test_compiled_keeps_its_weights_until_refreshed(model: nn.Module, compiled: CompiledModule) -> None:
    image = random(2, 3, 7, 8)
    before = compiled(image)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(1.5)
    assert torch.equal(compiled(image), before)
    compiled.refresh(model)
    check(compiled, model, image)
    with pytest.raises(RuntimeError, match=r"evaluation mode"):
        compiled.refresh(copy.deepcopy(model).train())
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with pytest.raises(RuntimeError, match=r"of the structure that was compiled"):
        compiled.refresh(other)
    check(compiled, model, image)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_compiled_copies_work_apart(model: nn.Module, compiled: CompiledModule, how: Any) -> None:
    image = random(2, 3, 7, 8)
    other = how(compiled)
    assert torch.equal(other(image), compiled(image))
    expected = compiled(image)
    with torch.no_grad():
        model[0].weight.mul_(2)
    other.refresh(model)
    assert torch.equal(compiled(image), expected) and not torch.equal(other(image), expected)


def test_compiled_stays_in_evaluation_mode(compiled: CompiledModule) -> None:
    whole = nn.Sequential(compiled, nn.Dropout()).train()
    assert not compiled.training and whole.training
    assert compiled.state_dict() == {} and "float32[N, 3, 7, 8]" in repr(compiled)


def test_compiled_runs_from_several_threads_at_once(model: nn.Module, compiled: CompiledModule) -> None:
    images = [random(n, 3, 7, 8, seed=n) for n in range(1, 5)]
    expected = [compiled(image) for image in images]
    wrong: list[int] = []

    def call(index: int) -> None:
        for _ in range(5):
            if not torch.equal(compiled(images[index]), expected[index]):
                wrong.append(index)

    run_in_threads(call, 4)
    assert not wrong


def test_report_states_steps_and_memory(compiled: CompiledModule, model: nn.Module) -> None:
    report = compiled.report()
    assert len(report.steps) == 7 and report.aten == {}  # 5 convolutions, 2 linear layers
    assert report.image_bytes % 64 == 0 and report.image_bytes >= 4 * 2 * 4 * 30
    assert f"{report.constant_bytes} bytes of weights + batch x {report.image_bytes} bytes" in str(report)
