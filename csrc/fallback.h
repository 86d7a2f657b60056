// torch's own ops, for what no kernel of ours covers (other devices, integer and complex dtypes). With
// fastcnn.backends.fallback(False) they raise NotImplementedError instead.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "common/shared.h"

namespace fastcnn::fallback {

// Without mean and var by the batch's own statistics; (output, mean, var, mask), the mask [0] unless asked for.
FASTCNN_SHARED std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm(
    const at::Tensor& input, const std::optional<at::Tensor>& mean, const std::optional<at::Tensor>& var,
    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& residual, double eps, bool relu, bool with_mask);

FASTCNN_SHARED std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_backward(
    bool training, const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& mean,
    const at::Tensor& var, const std::optional<at::Tensor>& weight, const at::Tensor& mask, double eps,
    std::array<bool, 4> output_mask);

// bit_mask::pack.
FASTCNN_SHARED at::Tensor relu_mask(const at::Tensor& output);

FASTCNN_SHARED at::Tensor concat(at::TensorList tensors, int64_t dim);

FASTCNN_SHARED at::Tensor conv2d(const at::Tensor& input, const at::Tensor& weight,
                                 const std::optional<at::Tensor>& bias, at::IntArrayRef stride, at::IntArrayRef padding,
                                 at::IntArrayRef dilation, int64_t groups, std::optional<std::string_view> activation);

FASTCNN_SHARED std::tuple<at::Tensor, at::Tensor, at::Tensor> conv2d_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, std::array<bool, 3> output_mask,
    const std::optional<at::Tensor>& activated);

FASTCNN_SHARED at::Tensor max_pool2d(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                     at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode);
FASTCNN_SHARED std::tuple<at::Tensor, at::Tensor> max_pool2d_with_indices(const at::Tensor& input,
                                                                          at::IntArrayRef kernel_size,
                                                                          at::IntArrayRef stride,
                                                                          at::IntArrayRef padding,
                                                                          at::IntArrayRef dilation, bool ceil_mode);
FASTCNN_SHARED at::Tensor avg_pool2d(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                     at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                                     std::optional<int64_t> divisor_override);
FASTCNN_SHARED at::Tensor adaptive_avg_pool2d(const at::Tensor& input, at::IntArrayRef output_size);

}  // namespace fastcnn::fallback
