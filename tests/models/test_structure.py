"""What the networks are: shapes, parameters, names, and what they refuse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastcnn import models


def square(channels: int, size: int) -> tuple[int, ...]:
    return (1, channels, size, size)


def repeat(*counts_and_shapes: tuple[int, tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [shape for count, shape in counts_and_shapes for _ in range(count)]


# name: the output shape of each module on the network's first level, as the textbook prints it for one image
SHAPES = {
    "lenet": repeat(
        (2, square(6, 28)), (1, square(6, 14)), (2, square(16, 10)), (1, square(16, 5)),
        (1, (1, 400)), (2, (1, 120)), (2, (1, 84)), (1, (1, 10)),
    ),
    "lenet_bn": repeat(
        (3, square(6, 24)), (1, square(6, 12)), (3, square(16, 8)), (1, square(16, 4)),
        (1, (1, 256)), (3, (1, 120)), (3, (1, 84)), (1, (1, 10)),
    ),
    "alexnet": repeat(
        (2, square(96, 54)), (1, square(96, 26)), (2, square(256, 26)), (1, square(256, 12)),
        (4, square(384, 12)), (2, square(256, 12)), (1, square(256, 5)),
        (1, (1, 6400)), (6, (1, 4096)), (1, (1, 10)),
    ),
    "vgg11": repeat(
        (1, square(64, 112)), (1, square(128, 56)), (1, square(256, 28)), (1, square(512, 14)), (1, square(512, 7)),
        (1, (1, 25088)), (6, (1, 4096)), (1, (1, 10)),
    ),
    "nin": repeat(
        (1, square(96, 54)), (1, square(96, 26)), (1, square(256, 26)), (1, square(256, 12)), (1, square(384, 12)),
        (2, square(384, 5)), (1, square(10, 5)), (1, square(10, 1)), (1, (1, 10)),
    ),
    "googlenet": repeat(
        (1, square(64, 24)), (1, square(192, 12)), (1, square(480, 6)), (1, square(832, 3)), (1, (1, 1024)),
        (1, (1, 10)),
    ),
    "resnet18": repeat(
        (1, square(64, 24)), (1, square(64, 24)), (1, square(128, 12)), (1, square(256, 6)), (1, square(512, 3)),
        (1, square(512, 1)), (1, (1, 512)), (1, (1, 10)),
    ),
    "densenet": repeat(
        (1, square(64, 24)), (1, square(192, 24)), (1, square(96, 12)), (1, square(224, 12)), (1, square(112, 6)),
        (1, square(240, 6)), (1, square(120, 3)), (3, square(248, 3)), (1, square(248, 1)), (1, (1, 248)),
        (1, (1, 10)),
    ),
}  # fmt: skip

# Some shapes further down.
INNER_SHAPES = {
    "googlenet": {
        "0.0": square(64, 48),
        "1.0": square(64, 24),
        "1.2": square(192, 24),
        "2.0": square(256, 12),
        "2.1": square(480, 12),
        "3.0": square(512, 6),
        "3.1": square(512, 6),
        "3.2": square(512, 6),
        "3.3": square(528, 6),
        "3.4": square(832, 6),
        "4.0": square(832, 3),
        "4.1": square(1024, 3),
        "4.2": square(1024, 1),
        "2.0.p1_1": square(64, 12),
        "2.0.p2_1": square(96, 12),
        "2.0.p2_2": square(128, 12),
        "2.0.p3_1": square(16, 12),
        "2.0.p3_2": square(32, 12),
        "2.0.p4_1": square(192, 12),
        "2.0.p4_2": square(32, 12),
    },
    "resnet18": {
        "0.0": square(64, 48),
        "0.1": square(64, 48),
        "0.3": square(64, 24),
        "2.0.conv1": square(128, 12),
        "2.0.conv3": square(128, 12),
        "2.1": square(128, 12),
    },
    "densenet": {
        "0.0": square(64, 48),
        "1.net.0": square(32, 24),
        "1.net.3.0": square(160, 24),
        "2.2": square(96, 24),
        "7.net.3.2": square(32, 3),
    },
    "vgg11": {"0.0": square(64, 224), "2.2": square(256, 56), "4.2": square(512, 14)},
    "nin": {"0.4": square(96, 54), "7.0": square(10, 5)},
}

# Counted by hand from the tables: weights and biases, and two for each channel of a BatchNorm.
PARAMETERS = {
    "lenet": 61_706,
    "lenet_bn": 44_878,
    "alexnet": 46_764_746,
    "vgg11": 128_806_154,
    "vgg13": 128_990_666,
    "vgg16": 134_300_362,
    "vgg19": 139_610_058,
    "nin": 1_992_166,
    "googlenet": 5_977_530,
    "resnet18": 11_178_378,
    "resnet34": 21_290_250,
    "densenet": 758_226,
}

NIN_BLOCK = [".0", ".2", ".4"]
INCEPTION_BLOCKS = ["2.0", "2.1", "3.0", "3.1", "3.2", "3.3", "3.4", "4.0", "4.1"]
INCEPTION = [".p1_1", ".p2_1", ".p2_2", ".p3_1", ".p3_2", ".p4_2"]
RESIDUAL = [".conv1", ".conv2", ".bn1", ".bn2"]
RESIDUAL_1X1 = [".conv1", ".conv2", ".conv3", ".bn1", ".bn2"]
DENSE_BLOCK = [f".net.{convolution}.{index}" for convolution in range(4) for index in (0, 2)]


def within(prefix: str, names: list[str]) -> list[str]:
    return [prefix + name for name in names]


# name: the modules with parameters, in the order of the textbook's definition
MODULES = {
    "lenet": ["0", "3", "7", "9", "11"],
    "lenet_bn": ["0", "1", "4", "5", "9", "10", "12", "13", "15"],
    "alexnet": ["0", "3", "6", "8", "10", "14", "17", "20"],
    "vgg11": ["0.0", "1.0", "2.0", "2.2", "3.0", "3.2", "4.0", "4.2", "6", "9", "12"],
    "nin": [name for block in "0247" for name in within(block, NIN_BLOCK)],
    "googlenet": ["0.0", "1.0", "1.2"]
    + [name for block in INCEPTION_BLOCKS for name in within(block, INCEPTION)]
    + ["5"],
    "resnet18": ["0.0", "0.1"]
    + within("1.0", RESIDUAL)
    + within("1.1", RESIDUAL)
    + [name for stage in "234" for name in within(f"{stage}.0", RESIDUAL_1X1) + within(f"{stage}.1", RESIDUAL)]
    + ["7"],
    "densenet": ["0.0", "0.1"]
    + [name for block in "135" for name in [*within(block, DENSE_BLOCK), f"{int(block) + 1}.0", f"{int(block) + 1}.2"]]
    + within("7", DENSE_BLOCK)
    + ["8", "12"],
}  # fmt: skip


def input_shape(name: str, channels: int = 1) -> tuple[int, ...]:
    size = models.REGISTRY[name].input_size
    return (1, channels, size, size)


def on_meta(name: str, **kwargs: Any) -> nn.Sequential:
    """The torch network without any memory behind its parameters."""
    with torch.device("meta"):
        return models.build(name, layers="torch", **kwargs)


def shapes_by_name(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Output shapes without those of the activations that a block shares between its convolutions."""
    return {row.name: row.shape for row in models.layer_shapes(model, shape) if not row.name.endswith("relu")}


@pytest.mark.parametrize("name", SHAPES)
def test_network_shapes_as_printed_by_the_textbook(name: str) -> None:
    shapes = shapes_by_name(on_meta(name), input_shape(name))
    top = {key: shape for key, shape in shapes.items() if "." not in key}
    assert top == {str(index): shape for index, shape in enumerate(SHAPES[name])}
    for key, shape in INNER_SHAPES.get(name, {}).items():
        assert shapes[key] == shape, key


@pytest.mark.parametrize("name", SHAPES)
def test_network_shapes_of_fastcnn_layers(name: str) -> None:
    plain = shapes_by_name(on_meta(name), input_shape(name))
    network = models.build(name)
    fast = shapes_by_name(network, input_shape(name))
    identities = {key for key, module in network.named_modules() if isinstance(module, nn.Identity)}
    assert fast == {key: shape for key, shape in plain.items() if key not in identities}


@pytest.mark.parametrize(
    "arguments", [{"padding": 0}, {"hidden_layers": 1}, {"padding": 0, "hidden_layers": 1}], ids=str
)
def test_alexnet_shapes_of_variants(arguments: dict[str, int]) -> None:
    shapes = [row.shape for row in models.layer_shapes(on_meta("alexnet", **arguments), input_shape("alexnet"))]
    expected = SHAPES["alexnet"]
    if arguments.get("hidden_layers") == 1:
        expected = expected[:-4] + expected[-1:]
    assert shapes == expected


@pytest.mark.parametrize("name", PARAMETERS)
def test_network_parameter_count(name: str) -> None:
    assert models.parameter_count(on_meta(name)) == PARAMETERS[name]


def test_vgg_parameter_count_of_narrow_variants() -> None:
    # Convolutions: sum of (9 in + 1) out over the channels divided; then the three linear layers.
    assert models.parameter_count(on_meta("vgg11", width_divisor=4)) == 576_832 + (6272 + 1) * 4096 + 4097 * 4106
    narrow = on_meta("vgg11", width_divisor=8, hidden_units=512)
    assert models.parameter_count(narrow) == 144_416 + (3136 + 1) * 512 + 513 * 522


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("layers", ["fastcnn", "torch"])
def test_network_takes_three_channels_and_a_thousand_classes(name: str, layers: str) -> None:
    with torch.device("meta"):
        network = models.build(name, in_channels=3, num_classes=1000, layers=layers)
    assert models.layer_shapes(network, input_shape(name, channels=3))[-1].shape == (1, 1000)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("layers", ["fastcnn", "torch"])
def test_network_parameter_names_in_the_textbook_order(name: str, layers: str) -> None:
    with torch.device("meta"):
        network = models.build(name, layers=layers)
    expected = [f"{module}.{kind}" for module in MODULES[name] for kind in ("weight", "bias")]
    assert [key for key, _ in network.named_parameters()] == expected
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert [key for key in network.state_dict() if not key.endswith(buffers)] == expected


@pytest.mark.parametrize("name", MODULES)
def test_network_module_tree_of_fastcnn_layers_is_the_plain_one(name: str) -> None:
    with torch.device("meta"):
        fast, plain = models.build(name), models.build(name, layers="torch")
    fast_modules, plain_modules = dict(fast.named_modules()), dict(plain.named_modules())
    assert list(fast_modules) == list(plain_modules)
    for key, module in plain_modules.items():
        if isinstance(
            module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm2d, nn.Flatten)
        ):
            assert isinstance(fast_modules[key], type(module)), key
        if isinstance(module, nn.ReLU):
            assert isinstance(fast_modules[key], (nn.ReLU, nn.Identity)), key


def test_network_fuses_every_relu_after_a_convolution_or_batch_norm() -> None:
    for name in MODULES:
        with torch.device("meta"):
            fast = models.build(name)
        for key, module in fast.named_modules():
            if isinstance(module, nn.ReLU):  # the only ones left follow linear layers
                assert isinstance(fast[int(key) - 1], nn.Linear), (name, key)


@pytest.mark.parametrize("source, target", [("fastcnn", "torch"), ("torch", "fastcnn")])
def test_network_state_dict_loads_strictly(case: Any, source: str, target: str) -> None:
    state = case.build(source).state_dict()
    torch.manual_seed(1)
    network = case.function(layers=target, **case.arguments)
    network.load_state_dict(state, strict=True)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_network_same_seed_gives_both_layer_sets_the_same_weights(case: Any) -> None:
    for with_initialize in (False, True):
        states = []
        for layers in ("fastcnn", "torch"):
            torch.manual_seed(3)
            network = case.function(layers=layers, **case.arguments)
            states.append((models.initialize(network) if with_initialize else network).state_dict())
        for key, value in states[0].items():
            assert torch.equal(value, states[1][key]), key


@pytest.mark.parametrize("layers", ["fastcnn", "torch"])
def test_network_survives_pickle_and_deepcopy(case: Any, layers: str) -> None:
    network = case.build(layers).eval()
    images = case.images(1, small=True)
    expected = network(images)
    assert torch.equal(pickle.loads(pickle.dumps(network))(images), expected)
    assert torch.equal(copy.deepcopy(network)(images), expected)


def test_initialize_draws_xavier_uniform_weights() -> None:
    torch.manual_seed(0)
    network = models.vgg(width_divisor=4, layers="torch")
    biases = {key: value.clone() for key, value in network.named_parameters() if key.endswith("bias")}
    assert models.initialize(network) is network
    for key, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            out_features, in_features = module.weight.shape[:2]
            bound = (6 / ((in_features + out_features) * module.weight[0, 0].numel())) ** 0.5
            largest = module.weight.abs().max().item()
            # The largest of n uniform values misses the bound by 1/n of it on average: 144 values or more here.
            assert 0.93 * bound < largest <= (1 + 1e-6) * bound, key
    for key, value in biases.items():
        assert torch.equal(network.get_parameter(key), value), key


def test_initialize_does_not_depend_on_the_memory_format() -> None:
    weights = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        layer = nn.Conv2d(4, 8, 3).to(memory_format=memory_format)
        torch.manual_seed(1)
        weights.append(models.initialize(layer).weight)
    assert weights[1].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    "function, arguments, message",
    [
        (models.lenet, {"in_channels": 0}, r"lenet: expected in_channels to be a positive integer, but got 0"),
        (models.lenet, {"num_classes": -3}, r"lenet: expected num_classes .* but got -3"),
        (models.lenet, {"num_classes": 2.5}, r"lenet: expected num_classes .* but got 2\.5"),
        (models.lenet, {"pool": "mean"}, r"lenet: expected pool to be 'avg' or 'max', but got 'mean'"),
        (models.alexnet, {"in_channels": -1}, r"alexnet: expected in_channels .* but got -1"),
        (models.alexnet, {"padding": 2}, r"alexnet: expected padding to be 0 or 1, but got 2"),
        (models.alexnet, {"hidden_layers": 3}, r"alexnet: expected hidden_layers to be 1 or 2, but got 3"),
        (models.alexnet, {"dropout": 1.5}, r"dropout probability .* 1\.5"),
        (models.vgg, {"depth": 12}, r"vgg: expected depth to be one of \[11, 13, 16, 19\], but got 12"),
        (models.vgg, {"width_divisor": 3}, r"vgg: expected width_divisor to divide 64, but got 3"),
        (models.vgg, {"width_divisor": 0}, r"vgg: expected width_divisor .* but got 0"),
        (models.vgg, {"hidden_units": 0}, r"vgg: expected hidden_units .* but got 0"),
        (models.nin, {"num_classes": 0}, r"nin: expected num_classes .* but got 0"),
        (models.nin, {"dropout": -0.5}, r"dropout probability .* -0\.5"),
        (models.googlenet, {"in_channels": True}, r"googlenet: expected in_channels .* but got True"),
        (models.resnet, {"depth": 50}, r"resnet: expected depth to be one of \[18, 34\], but got 50"),
        (models.densenet, {"num_convs": ()}, r"densenet: expected num_convs to name at least one block, but got \(\)"),
        (models.densenet, {"num_convs": (4, 0)}, r"densenet: expected num_convs\[1\] .* but got 0"),
        (models.densenet, {"growth_rate": 0}, r"densenet: expected growth_rate .* but got 0"),
    ],
)
def test_network_refuses_bad_arguments(
    function: Callable[..., nn.Module], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        function(layers="torch", **arguments)


@pytest.mark.parametrize(
    "function",
    [models.lenet, models.alexnet, models.vgg, models.nin, models.googlenet, models.resnet, models.densenet],
)
def test_network_refuses_unknown_layers(function: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="expected 'fastcnn' or 'torch', but got 'jax'"):
        function(layers="jax")
