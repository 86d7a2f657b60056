"""The registry, its recipes, and the helpers that describe a network."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from fastcnn import models


def test_registry_names() -> None:
    expected = "lenet lenet_bn alexnet vgg11 vgg13 vgg16 vgg19 nin googlenet resnet18 resnet34 densenet"
    assert list(models.REGISTRY) == expected.split()
    assert all(info.name == name for name, info in models.REGISTRY.items())


@pytest.mark.parametrize(
    "name, kind, settings",
    [
        ("lenet", "sgd", (0.9, 256, 10, 28)),
        ("lenet_bn", "sgd", (1.0, 256, 10, 28)),
        ("alexnet", "sgd", (0.01, 128, 10, 224)),
        ("vgg11", "sgd", (0.05, 128, 10, 224)),
        ("nin", "sgd", (0.1, 128, 10, 224)),
        ("googlenet", "sgd", (0.1, 128, 10, 96)),
        ("resnet18", "sgd", (0.05, 256, 10, 96)),
        ("densenet", "sgd", (0.05, 256, 10, 96)),
        ("alexnet", "adam", (0.001, 16, 3, 224)),
        ("vgg11", "adam", (0.001, 16, 5, 224)),
        ("nin", "adam", (0.002, 128, 5, 224)),
        ("googlenet", "adam", (0.001, 16, 5, 96)),
    ],
)
def test_registry_recipes_of_the_textbook(name: str, kind: str, settings: tuple[float, ...]) -> None:
    recipe = models.REGISTRY[name].recipes[kind]
    assert (recipe.lr, recipe.batch_size, recipe.epochs, recipe.resize) == settings
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay) == (kind, 0.0, 0.0)


@pytest.mark.parametrize("name", ["vgg13", "vgg16", "vgg19"])
def test_registry_deep_vgg_trains_as_in_its_paper(name: str) -> None:
    recipe = models.REGISTRY[name].recipes["sgd"]
    assert (recipe.momentum, recipe.weight_decay, recipe.batch_size) == (0.9, 5e-4, 256)


@pytest.mark.parametrize(
    "name, kind, parameters",
    [
        ("alexnet", "adam", 46_764_746 - 4097 * 4096),
        ("vgg11", "sgd", 576_832 + (6272 + 1) * 4096 + 4097 * 4106),
        ("vgg11", "adam", 144_416 + (3136 + 1) * 512 + 513 * 522),
    ],
)
def test_registry_recipes_choose_the_variant(name: str, kind: str, parameters: int) -> None:
    info = models.REGISTRY[name]
    with torch.device("meta"):
        network = info.build(layers="torch", **info.recipes[kind].network)
    assert models.parameter_count(network) == parameters


def test_registry_nin_trains_without_dropout_as_its_figures_were_reported() -> None:
    info = models.REGISTRY["nin"]
    networks = {kind: info.build(layers="torch", **recipe.network) for kind, recipe in info.recipes.items()}
    rates = {kind: [m.p for m in net if isinstance(m, nn.Dropout)] for kind, net in networks.items()}
    assert rates == {"sgd": [0.0], "adam": [0.5]}


def test_registry_every_recipe_builds_its_network() -> None:
    for info in models.REGISTRY.values():
        for recipe in info.recipes.values():
            assert recipe.resize == info.input_size
            with torch.device("meta"):
                network = info.build(layers="torch", **recipe.network)
            assert models.layer_shapes(network, (1, 1, recipe.resize, recipe.resize))[-1].shape == (1, 10)


def test_registry_reported_figures() -> None:
    reported = {name: dataclasses.astuple(info.reported) for name, info in models.REGISTRY.items() if info.reported}
    assert reported == {
        "lenet_bn": (0.267, 0.902, 0.842, 21184.6),
        "alexnet": (0.326, 0.880, 0.880, 407.4),
        "vgg11": (0.179, 0.933, 0.917, 333.2),
        "nin": (0.310, 0.885, 0.885, 385.2),
        "googlenet": (0.248, 0.904, 0.864, 601.7),
        "resnet18": (0.010, 0.998, 0.906, 828.8),
        "densenet": (0.140, 0.950, 0.909, 820.2),
    }


def test_build_passes_arguments_on() -> None:
    with torch.device("meta"):
        network = models.build("resnet34", in_channels=3, num_classes=7, layers="torch")
    assert network[0][0].in_channels == 3
    assert network[-1].out_features == 7
    assert [len(network[stage]) for stage in range(1, 5)] == [3, 4, 6, 3]


@pytest.mark.parametrize("name, hint", [("resnet", "resnet18 or resnet34"), ("lenet5", "lenet"), ("alexnt", "alexnet")])
def test_build_refuses_unknown_names(name: str, hint: str) -> None:
    with pytest.raises(
        ValueError, match=rf"expected a network of lenet, .* but got '{name}' \(did you mean {hint}\?\)"
    ):
        models.build(name)


def test_layer_shapes_lists_blocks_before_their_parts_and_no_identity() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Identity()), nn.Flatten())
    assert models.layer_shapes(network, (1, 1, 4, 4)) == [
        ("0", "Sequential", (1, 2, 2, 2)),
        ("0.0", "Conv2d", (1, 2, 2, 2)),
        ("1", "Flatten", (1, 8)),
    ]


def test_layer_shapes_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Conv2d(1, 1, 1))
    network[0].eval()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    models.layer_shapes(network, (1, 1, 2, 2))
    models.flop_count(network, (1, 1, 2, 2))
    assert [module.training for module in network.modules()] == [True, False, True, True]
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_layer_shapes_removes_its_hooks_after_an_error() -> None:
    network = nn.Sequential(nn.Linear(4, 2))
    network.train()
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        models.layer_shapes(network, (1, 3))
    assert network.training
    assert not network[0]._forward_hooks
    assert not network[0]._forward_pre_hooks


def test_flop_count_of_lenet_by_hand() -> None:
    convolutions = 6 * 28 * 28 * 25 + 16 * 10 * 10 * 6 * 25
    linear = 400 * 120 + 120 * 84 + 84 * 10
    for layers in ("torch", "fastcnn"):
        assert models.flop_count(models.lenet(layers=layers), (1, 1, 28, 28)) == 2 * (convolutions + linear)


def test_flop_count_of_fastcnn_layers_is_the_plain_network_s() -> None:
    for name in ("nin", "googlenet", "resnet18", "densenet"):
        shape = (2, 1, models.REGISTRY[name].input_size, models.REGISTRY[name].input_size)
        with torch.device("meta"):
            plain = models.flop_count(models.build(name, layers="torch"), shape)
        assert models.flop_count(models.build(name), shape) == plain > 0
