// The only calls of ATen's own convolution, pooling, norm and cat.
#include "fallback.h"

#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/relu.h>
#include <torch/library.h>

#include "checks/checks.h"
#include "common/backends.h"

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

at::Tensor conv2d(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                  std::optional<std::string_view> activation) {
  require_allowed("conv2d", input);
  const bool relu = checks::relu_activation("conv2d", activation);
  at::Tensor output = at::conv2d(input, weight, bias, stride, padding, dilation, groups);
  return relu ? at::relu(output) : output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> conv2d_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, std::array<bool, 3> output_mask) {
  require_allowed("conv2d_backward", input);
  const auto [grad_input, grad_weight, grad_bias] =
      at::convolution_backward(grad_output, input, weight, at::IntArrayRef{weight.size(0)}, stride, padding, dilation,
                               /*transposed=*/false, /*output_padding=*/{0, 0}, groups, output_mask);
  return {defined_or_empty(grad_input, input), defined_or_empty(grad_weight, input), defined_or_empty(grad_bias, input)};
}

}  // namespace fastcnn::fallback

TORCH_LIBRARY_IMPL(fastcnn, CompositeExplicitAutograd, m) {
  m.impl("conv2d", fastcnn::fallback::conv2d);
  m.impl("conv2d_backward", fastcnn::fallback::conv2d_backward);
}
