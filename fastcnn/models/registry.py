"""The networks by name, with their recipes and the figures the textbook reports: what the command line reads.

Recipes and figures are for Fashion-MNIST, and the textbook's (Dive into Deep Learning) where it has the network.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fastcnn.models.alexnet import alexnet
from fastcnn.models.densenet import densenet
from fastcnn.models.googlenet import googlenet
from fastcnn.models.lenet import lenet
from fastcnn.models.nin import nin
from fastcnn.models.resnet import resnet
from fastcnn.models.vgg import vgg


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: cross entropy, weights from fastcnn.models.initialize, these settings."""

    lr: float
    batch_size: int
    epochs: int
    resize: int  # pixels; images are made this wide and high
    optimizer: str = "sgd"  # or "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    network: Mapping[str, Any] = field(default_factory=dict)  # arguments for build()


@dataclass(frozen=True)
class Reported:
    """What the textbook reports for its SGD recipe after the last epoch."""

    loss: float
    train_accuracy: float
    test_accuracy: float
    examples_per_second: float  # on the author's GPU


@dataclass(frozen=True)
class NetworkInfo:
    """One network: how to build it, its paper, its recipes."""

    name: str
    function: Callable[..., nn.Sequential]
    input_size: int  # pixels
    citation: str
    recipes: Mapping[str, Recipe]  # "sgd", and "adam" where the textbook's other rendering has one
    arguments: Mapping[str, Any] = field(default_factory=dict)  # what makes this name of `function`
    reported: Reported | None = None

    def build(self, **kwargs: Any) -> nn.Sequential:
        """Builds the network; `kwargs` (in_channels, num_classes, layers, ...) come before its own arguments."""
        return self.function(**{**self.arguments, **kwargs})


_LENET_PAPER = "LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. 1998"
_BATCH_NORM_PAPER = "Ioffe, Szegedy: Batch normalization. ICML 2015"
_VGG_PAPER = "Simonyan, Zisserman: Very deep convolutional networks for large-scale image recognition. ICLR 2015"
_RESNET_PAPER = "He, Zhang, Ren, Sun: Deep residual learning for image recognition. CVPR 2016"

# The deeper VGGs are not in the textbook: the VGG paper's settings, at the textbook's number of epochs.
_DEEP_VGG_RECIPES = {"sgd": Recipe(0.01, 256, 10, 224, momentum=0.9, weight_decay=5e-4)}

_NETWORKS = (
    NetworkInfo(
        name="lenet",
        function=lenet,
        input_size=28,
        citation=_LENET_PAPER,
        recipes={"sgd": Recipe(0.9, 256, 10, 28)},
    ),
    NetworkInfo(
        name="lenet_bn",
        function=lenet,
        arguments={"batch_norm": True},
        input_size=28,
        citation=_BATCH_NORM_PAPER,
        recipes={"sgd": Recipe(1.0, 256, 10, 28)},
        reported=Reported(0.267, 0.902, 0.842, 21184.6),
    ),
    NetworkInfo(
        name="alexnet",
        function=alexnet,
        input_size=224,
        citation="Krizhevsky, Sutskever, Hinton: ImageNet classification with deep CNNs. NeurIPS 2012",
        recipes={
            "sgd": Recipe(0.01, 128, 10, 224),
            "adam": Recipe(0.001, 16, 3, 224, "adam", network={"padding": 0, "hidden_layers": 1}),
        },
        reported=Reported(0.326, 0.880, 0.880, 407.4),
    ),
    NetworkInfo(
        name="vgg11",
        function=vgg,
        arguments={"depth": 11},
        input_size=224,
        citation=_VGG_PAPER,
        recipes={
            "sgd": Recipe(0.05, 128, 10, 224, network={"width_divisor": 4}),
            "adam": Recipe(0.001, 16, 5, 224, "adam", network={"width_divisor": 8, "hidden_units": 512}),
        },
        reported=Reported(0.179, 0.933, 0.917, 333.2),
    ),
    NetworkInfo(
        name="vgg13",
        function=vgg,
        arguments={"depth": 13},
        input_size=224,
        citation=_VGG_PAPER,
        recipes=_DEEP_VGG_RECIPES,
    ),
    NetworkInfo(
        name="vgg16",
        function=vgg,
        arguments={"depth": 16},
        input_size=224,
        citation=_VGG_PAPER,
        recipes=_DEEP_VGG_RECIPES,
    ),
    NetworkInfo(
        name="vgg19",
        function=vgg,
        arguments={"depth": 19},
        input_size=224,
        citation=_VGG_PAPER,
        recipes=_DEEP_VGG_RECIPES,
    ),
    NetworkInfo(
        name="nin",
        function=nin,
        input_size=224,
        citation="Lin, Chen, Yan: Network in network. ICLR 2014",
        recipes={
            "sgd": Recipe(0.1, 128, 10, 224, network={"dropout": 0.0}),
            "adam": Recipe(0.002, 128, 5, 224, "adam"),
        },
        reported=Reported(0.310, 0.885, 0.885, 385.2),
    ),
    NetworkInfo(
        name="googlenet",
        function=googlenet,
        input_size=96,
        citation="Szegedy et al.: Going deeper with convolutions. CVPR 2015",
        recipes={
            "sgd": Recipe(0.1, 128, 10, 96),
            "adam": Recipe(0.001, 16, 5, 96, "adam"),
        },
        reported=Reported(0.248, 0.904, 0.864, 601.7),
    ),
    NetworkInfo(
        name="resnet18",
        function=resnet,
        arguments={"depth": 18},
        input_size=96,
        citation=_RESNET_PAPER,
        recipes={"sgd": Recipe(0.05, 256, 10, 96)},
        reported=Reported(0.010, 0.998, 0.906, 828.8),
    ),
    NetworkInfo(
        name="resnet34",
        function=resnet,
        arguments={"depth": 34},
        input_size=96,
        citation=_RESNET_PAPER,
        recipes={"sgd": Recipe(0.05, 256, 10, 96)},
    ),
    NetworkInfo(
        name="densenet",
        function=densenet,
        input_size=96,
        citation="Huang, Liu, van der Maaten, Weinberger: Densely connected convolutional networks. CVPR 2017",
        recipes={"sgd": Recipe(0.05, 256, 10, 96)},
        reported=Reported(0.140, 0.950, 0.909, 820.2),
    ),
)

REGISTRY: dict[str, NetworkInfo] = {info.name: info for info in _NETWORKS}


def build(name: str, **kwargs: Any) -> nn.Sequential:
    """Builds the network called `name` in REGISTRY.

    Args:
        name: "lenet", "lenet_bn", "alexnet", "vgg11", ...
        kwargs: arguments of the network's function: in_channels, num_classes, layers and its own.

    Raises:
        ValueError: no network has that name, or an argument is out of its range.
    """
    if name not in REGISTRY:
        close = [known for known in REGISTRY if known.startswith(name)] or difflib.get_close_matches(
            name, REGISTRY, n=1
        )
        hint = f" (did you mean {' or '.join(close)}?)" if close and name else ""
        raise ValueError(f"expected a network of {', '.join(REGISTRY)}, but got {name!r}{hint}")
    return REGISTRY[name].build(**kwargs)
