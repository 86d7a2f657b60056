"""The ops, with the arguments of torch.nn.functional. Each stands where torch's own function stood."""

from fastcnn.ops import _fake, _flops  # noqa: F401 - registers shapes and FLOP formulas
from fastcnn.ops.batch_norm import batch_norm, batch_norm_relu
from fastcnn.ops.concat import concat
from fastcnn.ops.conv2d import conv2d
from fastcnn.ops.dense_block import DenseLayer, dense_block
from fastcnn.ops.pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d

__all__ = [
    "DenseLayer",
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_relu",
    "concat",
    "conv2d",
    "dense_block",
    "max_pool2d",
]
