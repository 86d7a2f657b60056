// A ReLU's mask as one bit an element, in ordinary tensor operations: for what no kernel of ours computes. The mask of
// [n, c, ...] is uint8 [rows, ceil(c / 8)], its rows the positions n, ... in NHWC order, channel k in bit k % 8 of byte
// k / 8.
#pragma once
#include <ATen/core/Tensor.h>

namespace fastcnn::bit_mask {

// The mask of the elements where the gradient of relu(output) passes: above zero, or NaN as in torch.
at::Tensor pack(const at::Tensor& output);

// The mask of tensors shaped as `like`, in its shape and dtype: 1 where the gradient passes, 0 elsewhere.
at::Tensor unpack(const at::Tensor& mask, const at::Tensor& like);

// The gradient where it passes, zero elsewhere whatever it is there.
at::Tensor pass(const at::Tensor& mask, const at::Tensor& grad);

}  // namespace fastcnn::bit_mask
