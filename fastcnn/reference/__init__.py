"""The definitions from first principles: what each layer computes, as plain loops or a few tensor operations.

Written to be read, and used by the tests as the truth (in float64, where rounding does not matter). Nothing here is
fast and nothing here calls the library's kernels or torch's own convolution, pooling or normalization.

The lesson: output_size, corr2d, corr2d_multi_in, corr2d_multi_in_out, corr2d_multi_in_out_1x1, pool2d, batch_norm,
and the layers Conv2D and BatchNorm. The whole definitions, with every argument of torch's functions: conv2d,
max_pool2d, avg_pool2d, adaptive_avg_pool2d, batch_norm_relu, concat.
"""

from fastcnn.reference.batch_norm import BatchNorm, batch_norm, batch_norm_relu
from fastcnn.reference.concat import concat
from fastcnn.reference.conv2d import (
    Conv2D,
    conv2d,
    corr2d,
    corr2d_multi_in,
    corr2d_multi_in_out,
    corr2d_multi_in_out_1x1,
    output_size,
)
from fastcnn.reference.pool2d import adaptive_avg_pool2d, avg_pool2d, max_pool2d, pool2d, pooled_size

__all__ = [
    "BatchNorm",
    "Conv2D",
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_relu",
    "concat",
    "conv2d",
    "corr2d",
    "corr2d_multi_in",
    "corr2d_multi_in_out",
    "corr2d_multi_in_out_1x1",
    "max_pool2d",
    "output_size",
    "pool2d",
    "pooled_size",
]
