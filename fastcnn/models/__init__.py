"""The seven networks of the textbook Dive into Deep Learning, their recipes, and helpers to look at them.

Each network is a function that returns an ordinary module; ``layers`` chooses what it is built from::

    net = fastcnn.models.resnet(in_channels=3, num_classes=100)
    twin = fastcnn.models.resnet(in_channels=3, num_classes=100, layers="torch")
    twin.load_state_dict(net.state_dict())

The layers themselves live in fastcnn.nn; the training loop in fastcnn.train.
"""

from fastcnn.models.alexnet import alexnet
from fastcnn.models.densenet import densenet
from fastcnn.models.googlenet import googlenet
from fastcnn.models.initialization import initialize
from fastcnn.models.lenet import lenet
from fastcnn.models.nin import nin
from fastcnn.models.registry import REGISTRY, NetworkInfo, Recipe, Reported, build
from fastcnn.models.resnet import resnet
from fastcnn.models.summary import LayerShape, flop_count, layer_shapes, parameter_count
from fastcnn.models.vgg import vgg

__all__ = [
    "REGISTRY",
    "LayerShape",
    "NetworkInfo",
    "Recipe",
    "Reported",
    "alexnet",
    "build",
    "densenet",
    "flop_count",
    "googlenet",
    "initialize",
    "layer_shapes",
    "lenet",
    "nin",
    "parameter_count",
    "resnet",
    "vgg",
]
