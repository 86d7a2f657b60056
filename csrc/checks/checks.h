// From tensors and ints to validated geometry. Every message a user can see about an op's arguments is written in this
// room, with the exception type and the key words that torch uses for the same mistake.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "../common/geometry.h"

namespace fastcnn::checks {

Conv2dGeometry conv2d(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                      at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups);

// conv2d's checks, and that grad_output has the output's shape.
Conv2dGeometry conv2d_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                               at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                               int64_t groups);

// True for 'relu', false for none; anything else is an error.
bool relu_activation(const char* op, std::optional<std::string_view> activation);

}  // namespace fastcnn::checks
