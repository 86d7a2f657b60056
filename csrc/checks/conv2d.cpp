#include "checks.h"

namespace fastcnn::checks {
namespace {

constexpr const char* kOp = "fastcnn::conv2d: ";

void check_pair(at::IntArrayRef values, const char* name) {
  TORCH_CHECK(values.size() == 2, kOp, "expected ", name,
              " to be a single integer value or a list of 2 values, but got ", name, "=", values);
}

void check_hyperparameters(at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  check_pair(stride, "stride");
  check_pair(padding, "padding");
  check_pair(dilation, "dilation");
  TORCH_CHECK(groups > 0, kOp, "non-positive groups is not supported, but got groups=", groups);
  TORCH_CHECK(padding[0] >= 0 && padding[1] >= 0, kOp, "negative padding is not supported, but got padding=", padding);
  TORCH_CHECK(stride[0] > 0 && stride[1] > 0, kOp, "non-positive stride is not supported, but got stride=", stride);
  TORCH_CHECK(dilation[0] > 0 && dilation[1] > 0, kOp,
              "non-positive dilation is not supported, but got dilation=", dilation);
}

// in + 2 pad and dilation (kernel - 1) + 1 must fit 64 bits, or every later sum is wrong.
int64_t window_span(int64_t size, int64_t factor, const char* what) {
  int64_t product = 0;
  TORCH_CHECK(!__builtin_mul_overflow(size, factor, &product) && product < (int64_t{1} << 62), kOp, what,
              " is too large: ", size, " x ", factor, " overflows");
  return product;
}

}  // namespace

Conv2dGeometry conv2d(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                      at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  // 1. Ranks and hyperparameters.
  TORCH_CHECK(weight.dim() == 4, kOp, "expected 4-dimensional weight [out_channels, in_channels / groups, kernel_h, ",
              "kernel_w], but got weight of size ", weight.sizes());
  TORCH_CHECK(input.dim() == 4, kOp,
              "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: ", input.sizes());
  check_hyperparameters(stride, padding, dilation, groups);

  // 2. Channels.
  const auto in = input.sizes(), w = weight.sizes();
  TORCH_CHECK(w[0] >= groups, kOp, "Given groups=", groups, ", expected weight to be at least ", groups,
              " at dimension 0, but got weight of size ", w, " instead");
  TORCH_CHECK(w[0] % groups == 0, kOp, "Given groups=", groups, ", expected weight to be divisible by ", groups,
              " at dimension 0, but got weight of size ", w, " instead");
  TORCH_CHECK(in[1] == window_span(w[1], groups, "in_channels"), kOp, "Given groups=", groups, ", weight of size ", w,
              ", expected input", in, " to have ", w[1] * groups, " channels, but got ", in[1], " channels instead");
  TORCH_CHECK(w[1] > 0 && w[2] > 0 && w[3] > 0, kOp,
              "expected a weight without empty dimensions, but got weight of size ", w);
  if (bias.has_value() && bias->defined())
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == w[0], kOp, "Given weight of size ", w,
                ", expected bias to be 1-dimensional with ", w[0], " elements, but got bias of size ", bias->sizes(),
                " instead");

  // 3. One dtype, one device.
  TORCH_CHECK(input.scalar_type() == weight.scalar_type(), kOp, "Input type (", input.scalar_type(),
              ") and weight type (", weight.scalar_type(), ") should be the same");
  TORCH_CHECK(input.device() == weight.device(), kOp,
              "Expected all tensors to be on the same device, but got input on ", input.device(), " and weight on ",
              weight.device());
  if (bias.has_value() && bias->defined()) {
    TORCH_CHECK(input.scalar_type() == bias->scalar_type(), kOp, "Input type (", input.scalar_type(),
                ") and bias type (", bias->scalar_type(), ") should be the same");
    TORCH_CHECK(input.device() == bias->device(), kOp,
                "Expected all tensors to be on the same device, but got input on ", input.device(), " and bias on ",
                bias->device());
  }

  // 4. The window fits into the padded input.
  int64_t padded[2], span[2];
  for (int d = 0; d < 2; ++d) {
    padded[d] = in[2 + d] + window_span(padding[d], 2, "padding");
    span[d] = window_span(w[2 + d] - 1, dilation[d], "dilated kernel") + 1;
  }
  TORCH_CHECK(padded[0] >= span[0] && padded[1] >= span[1], kOp, "Calculated padded input size per channel: (",
              padded[0], " x ", padded[1], "). Kernel size: (", span[0], " x ", span[1],
              "). Kernel size can't be greater than actual input size");

  Conv2dGeometry g{};
  g.batch = in[0], g.in_channels = in[1], g.in_h = in[2], g.in_w = in[3];
  g.out_channels = w[0], g.kernel_h = w[2], g.kernel_w = w[3];
  g.stride_h = stride[0], g.stride_w = stride[1], g.pad_h = padding[0], g.pad_w = padding[1];
  g.dilation_h = dilation[0], g.dilation_w = dilation[1], g.groups = groups;
  g.out_h = conv_out_size(g.in_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h);
  g.out_w = conv_out_size(g.in_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  return g;
}

Conv2dGeometry conv2d_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                               at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                               int64_t groups, const std::optional<at::Tensor>& activated) {
  const Conv2dGeometry g = checks::conv2d(input, weight, std::nullopt, stride, padding, dilation, groups);
  const int64_t expected[] = {g.batch, g.out_channels, g.out_h, g.out_w};
  TORCH_CHECK(grad_output.sizes() == at::IntArrayRef(expected),
              "fastcnn::conv2d_backward: expected grad_output of size ", at::IntArrayRef(expected),
              ", but got grad_output of size ", grad_output.sizes());
  TORCH_CHECK(grad_output.scalar_type() == input.scalar_type(), "fastcnn::conv2d_backward: grad_output type (",
              grad_output.scalar_type(), ") and input type (", input.scalar_type(), ") should be the same");
  TORCH_CHECK(grad_output.device() == input.device(),
              "fastcnn::conv2d_backward: Expected all tensors to be on the same ", "device, but got grad_output on ",
              grad_output.device(), " and input on ", input.device());
  if (activated.has_value() && activated->defined()) {
    const int64_t mask[] = {g.batch * g.out_h * g.out_w, ceil_div(g.out_channels, 8)};
    TORCH_CHECK(activated->sizes() == at::IntArrayRef(mask) && activated->scalar_type() == at::kByte &&
                    activated->device() == grad_output.device(),
                "fastcnn::conv2d_backward: expected activated to be uint8 of size ", at::IntArrayRef(mask), " on ",
                grad_output.device(), ", but got ", activated->scalar_type(), " of size ", activated->sizes(), " on ",
                activated->device());
  }
  return g;
}

bool relu_activation(const char* op, std::optional<std::string_view> activation) {
  TORCH_CHECK_VALUE(!activation.has_value() || *activation == "relu", "fastcnn::", op,
                    ": expected activation to be None or 'relu', but got activation='",
                    std::string(activation.value_or("")), "'");
  return activation.has_value();
}

}  // namespace fastcnn::checks
