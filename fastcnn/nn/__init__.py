"""Drop-in modules: torch.nn's own with forward passes through fastcnn.ops. Parameters, buffers, keys are torch's."""

from fastcnn.nn.batch_norm import BatchNorm1d, BatchNorm2d, BatchNormReLU2d, convert_sync_batchnorm
from fastcnn.nn.concat import Concat
from fastcnn.nn.conv2d import Conv2d
from fastcnn.nn.dense_block import DenseBlock
from fastcnn.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, GlobalAvgPool2d, MaxPool2d

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNormReLU2d",
    "Concat",
    "Conv2d",
    "DenseBlock",
    "GlobalAvgPool2d",
    "MaxPool2d",
    "convert_sync_batchnorm",
]
