// The ops as C++ functions that go through the dispatcher: what autograd and other ops call, never each other's kernels.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace fastcnn::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, c10::SymIntArrayRef stride,
              c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
              std::optional<std::string_view> activation);

// Gradients that output_mask does not ask for come back as empty tensors.
std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad_output, const Tensor& input,
                                                   const Tensor& weight, c10::SymIntArrayRef stride,
                                                   c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                                   c10::SymInt groups, std::array<bool, 3> output_mask);

}  // namespace fastcnn::ops
