"""DenseBlock: what it computes against the same layers of torch.nn in float64, what it keeps, when it gives way."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conditions import with_layout
from kernels import recorded
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastcnn import backends
from fastcnn.models.layers import TorchDenseBlock
from fastcnn.nn import BatchNormReLU2d, Conv2d, DenseBlock, convert_sync_batchnorm
from fastcnn.ops import DenseLayer, dense_block

# Images, size, channels, growth, layers: channels straddle the mask's bytes and the registers.
SAMPLES = {
    "small": (3, 5, 5, 6, 3),
    "one_layer": (2, 4, 3, 8, 1),
    "one_channel": (4, 6, 1, 1, 2),
    "wide": (2, 7, 24, 16, 4),
    "one_pixel": (5, 1, 9, 4, 2),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}


@pytest.fixture(autouse=True)
def no_fallback() -> Any:
    with backends.fallback(False):
        yield


def make(sample: str, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[DenseBlock, nn.Module, Tensor]:
    """A block, its twin of torch.nn in float64, and an image; all parameters and statistics are drawn."""
    n, size, channels, growth, layers = SAMPLES[sample]
    torch.manual_seed(0)
    block = DenseBlock(layers, channels, growth)
    for module in block.modules():
        if isinstance(module, BatchNormReLU2d):
            nn.init.normal_(module.weight, 1.0, 0.5)
            nn.init.normal_(module.bias)
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            for name, value in changes.items():
                setattr(module, name, value)
    block = block.to(dtype)
    twin = TorchDenseBlock(layers, channels, growth).double()
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, value in changes.items():
                setattr(module, name, value)
    twin.load_state_dict(block.state_dict())
    return block, twin, torch.randn(n, channels, size, size, dtype=torch.float64).to(dtype)


def step(block: nn.Module, image: Tensor, **autocast: Any) -> dict[str, Tensor]:
    """Output, gradients and buffers after one forward and backward."""
    image = image.detach().clone().requires_grad_()
    with torch.autocast("cpu", **autocast) if autocast else torch.enable_grad():
        output = block(image)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    output.backward(weight.to(output.dtype))
    results = {"output": output.detach(), "gradient of the image": image.grad}
    results |= {f"gradient of {name}": p.grad for name, p in block.named_parameters() if p.grad is not None}
    results |= {name: buffer.clone() for name, buffer in block.named_buffers()}
    return {name: value for name, value in results.items() if value is not None}


def check(values: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    assert values.keys() == truth.keys()
    for name, value in values.items():
        assert value.shape == truth[name].shape, name
        error = (value.double() - truth[name].double()).norm()
        assert float(error) <= tolerance * max(float(truth[name].double().norm()), 1e-3), name


def ran_as_one(block: nn.Module, image: Tensor) -> bool:
    with backends.conv2d_algorithm("direct"):
        return "concat" not in recorded(lambda: block(image))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sample", SAMPLES)
def test_dense_block_values_and_gradients(sample: str, dtype: torch.dtype, layout: str, training: bool) -> None:
    block, twin, image = make(sample, dtype)
    truth = step(twin.train(training), image.double())
    values = step(block.train(training), with_layout(image, layout))
    assert ran_as_one(block, image)
    assert all(value.dtype == dtype for name, value in values.items() if value.is_floating_point())
    check(values, truth, TOLERANCE[dtype])


@pytest.mark.parametrize("algorithm", ["direct", "winograd_f4x3", "aten"])
def test_dense_block_as_its_layers_one_by_one(algorithm: str) -> None:
    block, _, image = make("wide")
    layers = copy.deepcopy(block)
    layers.fused = False
    with backends.fallback(algorithm == "aten"), backends.conv2d_algorithm(algorithm):
        check(step(block, image), step(layers, image), 1e-5)


@pytest.mark.parametrize(
    "changes", [{"momentum": None}, {"momentum": 0.7, "eps": 0.1}, {"track_running_stats": False}], ids=str
)
def test_dense_block_batch_norm_options_as_torch(changes: dict[str, Any]) -> None:
    block, twin, image = make("small", torch.float64, **changes)
    for _ in range(3):
        for p in (*block.parameters(), *twin.parameters()):
            p.grad = None
        check(step(block, image), step(twin, image), 1e-12)
    assert ran_as_one(block, image)


def test_dense_block_without_running_statistics_as_torch() -> None:
    block, twin, image = make("small", torch.float64, running_mean=None, running_var=None, num_batches_tracked=None)
    for training in (True, False):
        check(step(block.train(training), image), step(twin.train(training), image), 1e-12)
        block.zero_grad()
        twin.zero_grad()
        assert ran_as_one(block, image)


def test_dense_block_frozen_batch_norm_as_torch() -> None:
    block, twin, image = make("small", torch.float64)
    for module in (*block.modules(), *twin.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    check(step(block, image), step(twin, image), 1e-12)
    assert ran_as_one(block, image)


@pytest.mark.parametrize("wanted", ["image", "net.0.0.weight", "net.1.2.weight", "net.2.2.bias", "net.1.0.bias"])
def test_dense_block_gradients_of_some_parameters_only(wanted: str) -> None:
    block, twin, image = make("small", torch.float64)
    truth = step(twin, image)
    for name, p in block.named_parameters():
        p.requires_grad_(name == wanted)
    image = image.requires_grad_(wanted == "image")
    output = block(image)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    output.backward(weight)
    grads = {"image": image.grad, **{name: p.grad for name, p in block.named_parameters()}}
    assert [name for name, grad in grads.items() if grad is not None] == [wanted]
    grad = grads[wanted]
    assert grad is not None
    torch.testing.assert_close(grad, truth["gradient of " + wanted.replace("image", "the image")])


def test_dense_block_empty_batch() -> None:
    block, twin, image = make("small", torch.float64)
    for training in (True, False):
        check(step(block.train(training), image[:0]), step(twin.train(training), image[:0]), 0.0)
        block.zero_grad()
        twin.zero_grad()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dense_block_under_autocast_as_its_layers_one_by_one(dtype: torch.dtype, training: bool) -> None:
    block, _, image = make("small")
    layers = copy.deepcopy(block)
    layers.fused = False
    autocast = {"dtype": torch.bfloat16}
    values = step(block.train(training), image.to(dtype), **autocast)
    truth = step(layers.train(training), image.to(dtype), **autocast)
    assert {name: value.dtype for name, value in values.items()} == {name: v.dtype for name, v in truth.items()}
    check(values, truth, 2e-2)


def test_dense_block_output_format_as_its_convolutions() -> None:
    block, _, image = make("small")
    nhwc = torch.channels_last
    assert block(image).is_contiguous(memory_format=nhwc)
    block = block.to(memory_format=torch.contiguous_format)
    assert block(image).is_contiguous()
    assert block(image.to(memory_format=nhwc)).is_contiguous(memory_format=nhwc)


def test_dense_block_keeps_its_features_only() -> None:
    saved: dict[bool, int] = {}
    for fused in (True, False):
        block, _, image = make("wide")
        block.fused = fused
        sizes: dict[int, int] = {}

        def pack(t: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = block(image.requires_grad_())
        for p in block.parameters():
            sizes.pop(p.untyped_storage().data_ptr(), None)
        saved[fused] = sum(sizes.values())
        features = output.untyped_storage().nbytes()
    # Beside its output two float64 values for each channel that the last layer reads.
    assert saved[True] == features + 2 * 8 * (24 + 3 * 16)
    assert saved[False] > 4 * saved[True]


def test_dense_block_saves_nothing_without_gradients() -> None:
    block, _, image = make("small")
    with torch.no_grad():
        assert block(image).grad_fn is None
    assert block.requires_grad_(False)(image).grad_fn is None
    gc.collect()


def test_dense_block_result_does_not_depend_on_threads() -> None:
    block, _, image = make("wide")
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(step(copy.deepcopy(block), image))
    for result in results[1:]:
        assert all(torch.equal(value, results[0][name]) for name, value in result.items())


def test_dense_block_passes_nan_on() -> None:
    block, twin, image = make("small", torch.float64)
    image[0, 2, 1, 1] = torch.nan
    for training in (True, False):
        expected = twin.train(training)(image).isnan()
        assert torch.equal(block.train(training)(image).isnan(), expected)


GIVES_WAY: dict[str, Callable[[DenseBlock], Any]] = {
    "hook": lambda block: block.net[1][0].register_forward_hook(lambda *_: None),
    "pre_hook": lambda block: block.net[1][2].register_forward_pre_hook(lambda *_: None),
    "hook_of_relu": lambda block: block.net[0][1].register_forward_hook(lambda *_: None),
    "hook_of_layer": lambda block: block.net[0].register_forward_hook(lambda *_: None),
    "hook_of_concat": lambda block: block.concat.register_forward_hook(lambda *_: None),
    "backward_hook": lambda block: block.net[1][2].register_full_backward_hook(lambda *_: None),
    "global_hook": lambda block: nn.modules.module.register_module_forward_hook(lambda *_: None),
    "patched_forward": lambda block: setattr(block.net[1][2], "forward", block.net[1][2].forward),
    "weight_norm": lambda block: nn.utils.parametrizations.weight_norm(block.net[1][2]),
    "other_convolution": lambda block: block.net[2].__setitem__(2, nn.Conv2d(17, 6, 3, padding=1)),
    "without_bias": lambda block: block.net[2].__setitem__(2, Conv2d(17, 6, 3, padding=1, bias=False)),
    "more_in_a_layer": lambda block: block.net[2].append(nn.Dropout(0.0)),
    "mixed_modes": lambda block: block.net[1][0].eval(),
    "fused_is_off": lambda block: setattr(block, "fused", False),
}


@pytest.mark.parametrize("change", GIVES_WAY)
def test_dense_block_runs_its_layers_one_by_one_after(change: str) -> None:
    block, _, image = make("small")
    expected = copy.deepcopy(block)
    handle = GIVES_WAY[change](block)
    try:
        with backends.fallback(True):
            assert not ran_as_one(block, image)
        if change not in ("other_convolution", "without_bias", "mixed_modes"):
            torch.testing.assert_close(copy.deepcopy(block)(image), expected(image))
    finally:
        if hasattr(handle, "remove"):
            handle.remove()


def test_dense_block_synchronised_batch_norm_runs_one_by_one() -> None:
    block, _, image = make("small")
    converted = convert_sync_batchnorm(block).eval()
    assert not ran_as_one(converted, image)


def test_dense_block_refuses_double_backward_and_says_what_does_it() -> None:
    block, _, image = make("small", torch.float64)
    image.requires_grad_()
    (grad,) = torch.autograd.grad(block(image).square().sum(), image, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"dense_block: double backward .* `fused = False`"):
        grad.sum().backward()
    block.fused = False
    (grad,) = torch.autograd.grad(block(image).square().sum(), image, create_graph=True)
    grad.sum().backward()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_dense_block_gradcheck(training: bool) -> None:
    block, _, image = make("small", torch.float64)
    block.train(training)
    names, values = zip(*block.named_parameters(), strict=True)

    def call(image: Tensor, *values: Tensor) -> Tensor:
        for buffer in block.buffers():
            buffer.detach_()
        output: Tensor = torch.func.functional_call(block, dict(zip(names, values, strict=True)), (image,))
        return output

    assert torch.autograd.gradcheck(call, (image.requires_grad_(), *values), fast_mode=True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_dense_block_opcheck(training: bool) -> None:
    block, _, image = make("one_channel")
    norms, convs = [layer[0] for layer in block.net], [layer[2] for layer in block.net]
    image = image.requires_grad_()
    parameters = [p for n, c in zip(norms, convs, strict=True) for p in (n.weight, n.bias, c.weight, c.bias)]
    running = [s for n in norms for s in (n.running_mean, n.running_var)]
    eps = [n.eps for n in norms]
    ops: Any = torch.ops.fastcnn
    if training:
        torch.library.opcheck(ops.dense_block_train.default, (image, parameters, eps))
        features, *statistics = ops.dense_block_train.default(image.detach(), parameters, eps)
    else:
        torch.library.opcheck(ops.dense_block_infer.default, (image, running, parameters, eps))
        features, statistics = ops.dense_block_infer.default(image.detach(), running, parameters, eps), running
    features = features.detach()
    backward = ops.dense_block_train_backward if training else ops.dense_block_infer_backward
    parameters = [p.detach() for p in parameters]
    mask = [True, True, False, True, True, False, True, True, True]
    torch.library.opcheck(backward.default, (torch.randn_like(features), features, statistics, parameters, eps, mask))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_dense_block_compiles_and_exports_as_one_op(training: bool) -> None:
    block, _, image = make("small")
    block.train(training)
    twin = copy.deepcopy(block)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    output, expected = compiled(image), twin(image)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    for p, q in zip(block.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    program = torch.export.export(block, (image,))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("dense_block" in name for name in names) and not any("concat" in name for name in names), names
    torch._dynamo.reset()


def test_dense_block_flop_as_torch() -> None:
    block, twin, image = make("wide")
    counts = []
    for module, input in ((block, image), (twin, image.double())):
        with FlopCounterMode(display=False) as counter:
            module(input.clone().requires_grad_()).sum().backward()
        counts.append(counter.get_total_flops())
    # A module that is being counted has hooks, and so runs one by one; the op itself counts as much.
    norms, convs = [layer[0] for layer in block.net], [layer[2] for layer in block.net]
    layers = [DenseLayer(None, None, n.weight, n.bias, c.weight, c.bias) for n, c in zip(norms, convs, strict=True)]
    with FlopCounterMode(display=False) as counter:
        dense_block(image.requires_grad_(), layers, training=True).sum().backward()
    assert counts[0] == counts[1] == counter.get_total_flops() > 0


def test_dense_block_errors_as_torch() -> None:
    block, _, image = make("small")
    with pytest.raises(RuntimeError, match="elements"):
        block(image[:, :4])
    with pytest.raises(ValueError, match="expected 4D input"):
        block(image[0])
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        block(image[:1, :, :1, :1])
    with pytest.raises(RuntimeError, match="type"):
        block(image.double())
