// The only calls of ATen's own convolution, pooling, norm and cat.
#include "fallback.h"

#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/max_pool2d_with_indices.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/var.h>
#include <torch/library.h>

#include "checks/checks.h"
#include "common/backends.h"
#include "common/bit_mask.h"
#include "common/switches.h"

namespace fastcnn::fallback {
namespace {

void require_allowed(const char* op, const at::Tensor& input) {
  TORCH_CHECK_NOT_IMPLEMENTED(backends::current().fallback, "fastcnn::", op, ": no kernel of fastcnn covers ",
                              input.scalar_type(), " on ", input.device(),
                              ", and fastcnn.backends.fallback is off, so that torch's own op may not run instead");
  backends::record_kernel("aten");
}

at::Tensor defined_or_empty(const at::Tensor& t, const at::Tensor& like) {
  return t.defined() ? t : at::empty({0}, like.options());
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm(
    const at::Tensor& input, const std::optional<at::Tensor>& mean, const std::optional<at::Tensor>& var,
    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& residual, double eps, bool relu, bool with_mask) {
  require_allowed("batch_norm", input);
  const bool training = !mean.has_value();
  auto [output, batch_mean, batch_inverse] = at::native_batch_norm(input, weight, bias, mean, var, training, 0, eps);
  if (residual.has_value() && residual->defined()) output = output.add(*residual);
  if (relu) output = at::relu(output);
  const at::Tensor none = at::empty({0}, input.options().dtype(at::kByte));
  const at::Tensor mask = relu && with_mask ? bit_mask::pack(output) : none;
  if (!training) return {output, none, none, mask};
  std::vector<int64_t> dims{0};
  for (int64_t d = 2; d < input.dim(); ++d) dims.push_back(d);
  return {output, batch_mean, at::var(input.to(batch_mean.scalar_type()), dims, /*unbiased=*/false), mask};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_backward(
    bool training, const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& mean,
    const at::Tensor& var, const std::optional<at::Tensor>& weight, const at::Tensor& mask, double eps,
    std::array<bool, 4> output_mask) {
  require_allowed("batch_norm_backward", input);
  const bool masked = mask.dim() == 2;
  const at::Tensor grad = masked ? grad_output.mul(bit_mask::unpack(mask, grad_output)) : grad_output;
  const auto [grad_input, grad_weight, grad_bias] =
      at::native_batch_norm_backward(grad, input, weight, mean, var, mean, var.add(eps).rsqrt(), training, eps,
                                     {output_mask[0], output_mask[1], output_mask[2]});
  const at::Tensor grad_residual = !output_mask[3] ? at::Tensor() : masked ? grad : grad.clone();
  return {defined_or_empty(grad_input, input), defined_or_empty(grad_weight, input), defined_or_empty(grad_bias, input),
          defined_or_empty(grad_residual, input)};
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_train(const at::Tensor& input,
                                                                const std::optional<at::Tensor>& weight,
                                                                const std::optional<at::Tensor>& bias,
                                                                const std::optional<at::Tensor>& residual, double eps,
                                                                bool relu) {
  auto [output, mean, var, mask] =
      batch_norm(input, std::nullopt, std::nullopt, weight, bias, residual, eps, relu, /*with_mask=*/false);
  return {output, mean, var};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> _batch_norm_train(const at::Tensor& input,
                                                                             const std::optional<at::Tensor>& weight,
                                                                             const std::optional<at::Tensor>& bias,
                                                                             const std::optional<at::Tensor>& residual,
                                                                             double eps, bool relu) {
  return batch_norm(input, std::nullopt, std::nullopt, weight, bias, residual, eps, relu, /*with_mask=*/true);
}

at::Tensor batch_norm_infer(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                            const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
                            const std::optional<at::Tensor>& residual, double eps, bool relu) {
  return std::get<0>(batch_norm(input, mean, var, weight, bias, residual, eps, relu, /*with_mask=*/false));
}

std::tuple<at::Tensor, at::Tensor> _batch_norm_infer(const at::Tensor& input, const at::Tensor& mean,
                                                     const at::Tensor& var, const std::optional<at::Tensor>& weight,
                                                     const std::optional<at::Tensor>& bias,
                                                     const std::optional<at::Tensor>& residual, double eps, bool relu) {
  auto [output, no_mean, no_var, mask] =
      batch_norm(input, mean, var, weight, bias, residual, eps, relu, /*with_mask=*/true);
  return {output, mask};
}

template <bool kTraining>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_backward_of(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
    const std::optional<at::Tensor>& weight, const at::Tensor& mask, double eps, std::array<bool, 4> output_mask) {
  return batch_norm_backward(kTraining, grad_output, input, mean, var, weight, mask, eps, output_mask);
}

// running = (1 - momentum) * running + momentum * batch, the variance unbiased.
void batch_norm_update(const at::Tensor& running_mean, const at::Tensor& running_var, const at::Tensor& mean,
                       const at::Tensor& var, double momentum, int64_t rows) {
  checks::batch_norm_update(running_mean, running_var, mean, var, rows);
  require_allowed("_batch_norm_update", mean);
  const double unbiased = static_cast<double>(rows) / static_cast<double>(rows - 1);
  running_mean.copy_(running_mean.to(mean.scalar_type()).mul(1 - momentum).add(mean, momentum));
  running_var.copy_(running_var.to(var.scalar_type()).mul(1 - momentum).add(var, momentum * unbiased));
}

}  // namespace

at::Tensor relu_mask(const at::Tensor& output) {
  require_allowed("_relu_mask", output);
  return bit_mask::pack(output);
}

at::Tensor concat(at::TensorList tensors, int64_t dim) {
  TORCH_CHECK_VALUE(!tensors.empty(), "fastcnn::concat: expected a non-empty list of Tensors");
  require_allowed("concat", tensors[0]);
  return at::cat(tensors, dim);
}

at::Tensor conv2d(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                  std::optional<std::string_view> activation) {
  require_allowed("conv2d", input);
  const bool relu = checks::relu_activation("conv2d", activation);
  at::Tensor output = at::conv2d(input, weight, bias, stride, padding, dilation, groups);
  return relu ? at::relu_(output) : output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> conv2d_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                                               const at::Tensor& weight, at::IntArrayRef stride,
                                                               at::IntArrayRef padding, at::IntArrayRef dilation,
                                                               int64_t groups, std::array<bool, 3> output_mask,
                                                               const std::optional<at::Tensor>& activated) {
  require_allowed("conv2d_backward", input);
  const bool relu = activated.has_value() && activated->defined();
  const at::Tensor grad = relu ? bit_mask::pass(*activated, grad_output) : grad_output;
  const auto [grad_input, grad_weight, grad_bias] =
      at::convolution_backward(grad, input, weight, at::IntArrayRef{weight.size(0)}, stride, padding, dilation,
                               /*transposed=*/false, /*output_padding=*/{0, 0}, groups, output_mask);
  return {defined_or_empty(grad_input, input), defined_or_empty(grad_weight, input),
          defined_or_empty(grad_bias, input)};
}

at::Tensor max_pool2d(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  require_allowed("max_pool2d", input);
  return at::max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
}

std::tuple<at::Tensor, at::Tensor> max_pool2d_with_indices(const at::Tensor& input, at::IntArrayRef kernel_size,
                                                           at::IntArrayRef stride, at::IntArrayRef padding,
                                                           at::IntArrayRef dilation, bool ceil_mode) {
  require_allowed("max_pool2d_with_indices", input);
  return at::max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode);
}

at::Tensor avg_pool2d(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                      at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                      std::optional<int64_t> divisor_override) {
  require_allowed("avg_pool2d", input);
  return at::avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
}

at::Tensor adaptive_avg_pool2d(const at::Tensor& input, at::IntArrayRef output_size) {
  require_allowed("adaptive_avg_pool2d", input);
  return at::adaptive_avg_pool2d(input, output_size);
}

}  // namespace fastcnn::fallback

TORCH_LIBRARY_IMPL(fastcnn, CompositeExplicitAutograd, m) {
  m.impl("batch_norm_train", fastcnn::fallback::batch_norm_train);
  m.impl("_batch_norm_train", fastcnn::fallback::_batch_norm_train);
  m.impl("_batch_norm_train_traced", fastcnn::backends::GivingSwitches<fastcnn::fallback::_batch_norm_train>::call);
  m.impl("batch_norm_train_backward",
         fastcnn::backends::TakingSwitches<fastcnn::fallback::batch_norm_backward_of<true>>::call);
  m.impl("batch_norm_infer", fastcnn::fallback::batch_norm_infer);
  m.impl("_batch_norm_infer", fastcnn::fallback::_batch_norm_infer);
  m.impl("_batch_norm_infer_traced", fastcnn::backends::GivingSwitches<fastcnn::fallback::_batch_norm_infer>::call);
  m.impl("batch_norm_infer_backward",
         fastcnn::backends::TakingSwitches<fastcnn::fallback::batch_norm_backward_of<false>>::call);
  m.impl("_batch_norm_update", fastcnn::fallback::batch_norm_update);
  m.impl("concat", fastcnn::fallback::concat);
  m.impl("conv2d", fastcnn::fallback::conv2d);
  m.impl("_relu_mask", fastcnn::fallback::relu_mask);
  m.impl("_conv2d_traced", fastcnn::backends::GivingSwitches<fastcnn::fallback::conv2d>::call);
  m.impl("conv2d_backward", fastcnn::backends::TakingSwitches<fastcnn::fallback::conv2d_backward>::call);
  m.impl("max_pool2d", fastcnn::fallback::max_pool2d);
  m.impl("max_pool2d_with_indices", fastcnn::fallback::max_pool2d_with_indices);
  m.impl("avg_pool2d", fastcnn::fallback::avg_pool2d);
  m.impl("adaptive_avg_pool2d", fastcnn::fallback::adaptive_avg_pool2d);
}
