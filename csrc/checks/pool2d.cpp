#include <string>

#include "checks.h"

namespace fastcnn::checks {
namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

std::string prefix(const char* op) { return std::string("fastcnn::") + op + ": "; }

void check_pair(const char* op, at::IntArrayRef values, const char* name) {
  TORCH_CHECK(values.size() == 2, prefix(op), op, ": ", name, " must either be a single int, or a tuple of two ints, ",
              "but got ", name, "=", values);
  for (const int64_t value : values)
    TORCH_CHECK(value <= kMaxInt && value >= -kMaxInt, prefix(op), name, ": value cannot be converted to type int ",
                "without overflow, but got ", name, "=", values);
}

// The window, with stride the kernel's size where it is left out; sizes are [n, c, in_h, in_w].
Pool2dGeometry pool2d(const char* op, at::IntArrayRef sizes, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  // 1. Hyperparameters.
  if (stride.empty()) stride = kernel_size;
  check_pair(op, kernel_size, "kernel_size");
  check_pair(op, stride, "stride");
  check_pair(op, padding, "padding");
  check_pair(op, dilation, "dilation");
  const std::string at = prefix(op);
  for (int d = 0; d < 2; ++d) {
    TORCH_CHECK(stride[d] != 0, at, "stride should not be zero, but got stride=", stride);
    TORCH_CHECK(kernel_size[d] > 0, at, "kernel size should be greater than zero, but got kH: ", kernel_size[0],
                " kW: ", kernel_size[1]);
    TORCH_CHECK(stride[d] > 0, at, "stride should be greater than zero, but got dH: ", stride[0], " dW: ", stride[1]);
    TORCH_CHECK(dilation[d] > 0, at, "dilation should be greater than zero, but got dilationH: ", dilation[0],
                " dilationW: ", dilation[1]);
    TORCH_CHECK(padding[d] >= 0, at, "pad must be non-negative, but got pad: ", padding[d]);
    TORCH_CHECK(padding[d] <= ((kernel_size[d] - 1) * dilation[d] + 1) / 2, at,
                "pad should be at most half of effective kernel size, but got pad=", padding[d],
                ", kernel_size=", kernel_size[d], " and dilation=", dilation[d]);
    TORCH_CHECK(padding[d] <= kernel_size[d] / 2, at,
                "pad should be smaller than or equal to half of kernel size, but got padW = ", padding[1],
                ", padH = ", padding[0], ", kW = ", kernel_size[1], ", kH = ", kernel_size[0]);
  }

  // 2. Sizes. torch's avg_pool2d asks for dimension -3 before anything else, hence another exception type.
  TORCH_CHECK_INDEX(sizes.size() >= 3 || std::string_view(op) != "avg_pool2d", at,
                    "Dimension out of range: expected 3D ", "or 4D input, but got input of size ", sizes);
  TORCH_CHECK(sizes.size() == 4, at, "non-empty 3D or 4D (batch mode) tensor expected for input: Expected 3D or 4D ",
              "(batch mode) tensor, but got: ", sizes);
  TORCH_CHECK(sizes[1] > 0 && sizes[2] > 0 && sizes[3] > 0, at,
              "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:", sizes);
  Pool2dGeometry g{};
  g.batch = sizes[0], g.channels = sizes[1], g.in_h = sizes[2], g.in_w = sizes[3];
  g.kernel_h = kernel_size[0], g.kernel_w = kernel_size[1];
  g.stride_h = stride[0], g.stride_w = stride[1], g.pad_h = padding[0], g.pad_w = padding[1];
  g.dilation_h = dilation[0], g.dilation_w = dilation[1];
  g.out_h = pool_out_size(g.in_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h, ceil_mode);
  g.out_w = pool_out_size(g.in_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w, ceil_mode);
  TORCH_CHECK(g.out_h >= 1 && g.out_w >= 1, at, "Given input size: (", g.channels, "x", g.in_h, "x", g.in_w,
              "). Calculated output size: (", g.channels, "x", g.out_h, "x", g.out_w, "). Output size is too small");
  return g;
}

void check_output_shaped(const char* op, const char* name, at::IntArrayRef sizes, const Pool2dGeometry& g) {
  const int64_t expected[] = {g.batch, g.channels, g.out_h, g.out_w};
  TORCH_CHECK(sizes == at::IntArrayRef(expected), prefix(op), "expected ", name, " of size ", at::IntArrayRef(expected),
              ", but got ", name, " of size ", sizes);
}

void check_same_device(const char* op, const char* name, const at::Tensor& t, const at::Tensor& offsets) {
  TORCH_CHECK(t.device() == offsets.device(), prefix(op), "Expected all tensors to be on the same device, but got ",
              name, " on ", t.device(), " and offsets on ", offsets.device());
}

void check_floating(const char* op, const at::Tensor& t) {
  TORCH_CHECK_NOT_IMPLEMENTED(at::isFloatingType(t.scalar_type()) && t.element_size() > 1, prefix(op), "\"", op,
                              "\" not implemented for '", toString(t.scalar_type()), "'");
}

void check_divisor(const char* op, std::optional<int64_t> divisor_override) {
  TORCH_CHECK(divisor_override.value_or(1) != 0, prefix(op), "divisor must be not zero, but got divisor_override=0");
}

Pool2dGeometry adaptive(const char* op, at::IntArrayRef sizes, at::IntArrayRef output_size) {
  const std::string at = prefix(op);
  TORCH_CHECK(output_size.size() == 2, at,
              "adaptive_avg_pool2d: output_size must be 2, but got output_size=", output_size);
  TORCH_CHECK(output_size[0] >= 0 && output_size[1] >= 0, at, "adaptive_avg_pool2d: elements of output_size must be ",
              "greater than or equal to 0 but received {", output_size[0], ", ", output_size[1], "}");
  TORCH_CHECK(sizes.size() == 4, at, "adaptive_avg_pool2d(): Expected 3D or 4D tensor, but got ", sizes);
  // torch's mean of an empty image is NaN, and one output pixel is that mean.
  if (output_size[0] != 1 || output_size[1] != 1)
    for (int d = 2; d < 4; ++d)
      TORCH_CHECK(sizes[d] > 0, at, "adaptive_avg_pool2d(): Expected input to have non-zero size for non-batch ",
                  "dimensions, but input has sizes ", sizes, " with dimension ", d, " being empty");
  for (int d = 0; d < 2; ++d) {
    int64_t product = 0;
    TORCH_CHECK(!__builtin_mul_overflow(output_size[d] + 1, sizes[2 + d], &product), at, "integer multiplication ",
                "overflow, output_size=", output_size, " is too large");
  }
  Pool2dGeometry g{};
  g.batch = sizes[0], g.channels = sizes[1], g.in_h = sizes[2], g.in_w = sizes[3];
  g.out_h = output_size[0], g.out_w = output_size[1];
  return g;
}

}  // namespace

Pool2dGeometry max_pool2d(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  return pool2d("max_pool2d", input.sizes(), kernel_size, stride, padding, dilation, ceil_mode);
}

Pool2dGeometry max_pool2d_train(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  const Pool2dGeometry g = checks::max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
  check_floating("max_pool2d", input);
  TORCH_CHECK_NOT_IMPLEMENTED(g.kernel_h * g.kernel_w <= kMaxPool2dTaps, "fastcnn::max_pool2d: a window of more than ",
                              kMaxPool2dTaps,
                              " elements has no gradient and no indices, but got kernel_size=", kernel_size);
  return g;
}

Pool2dGeometry max_pool2d_offsets(const at::Tensor& offsets, at::IntArrayRef input_size, at::IntArrayRef kernel_size,
                                  at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                  bool ceil_mode) {
  const Pool2dGeometry g = pool2d("max_pool2d", input_size, kernel_size, stride, padding, dilation, ceil_mode);
  check_output_shaped("max_pool2d", "offsets", offsets.sizes(), g);
  TORCH_CHECK(offsets.scalar_type() == at::kByte || offsets.scalar_type() == at::kInt,
              "fastcnn::max_pool2d: expected offsets of dtype uint8 or int32, but got ", offsets.scalar_type());
  return g;
}

Pool2dGeometry max_pool2d_gather(const at::Tensor& values, const at::Tensor& offsets, at::IntArrayRef kernel_size,
                                 at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                 bool ceil_mode) {
  check_floating("max_pool2d", values);
  check_same_device("max_pool2d", "values", values, offsets);
  return max_pool2d_offsets(offsets, values.sizes(), kernel_size, stride, padding, dilation, ceil_mode);
}

void max_pool2d_grad_output(const at::Tensor& grad_output, const at::Tensor& offsets, const Pool2dGeometry& g) {
  check_output_shaped("max_pool2d_backward", "grad_output", grad_output.sizes(), g);
  check_floating("max_pool2d_backward", grad_output);
  check_same_device("max_pool2d_backward", "grad_output", grad_output, offsets);
}

Pool2dGeometry avg_pool2d(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                          at::IntArrayRef padding, bool ceil_mode, std::optional<int64_t> divisor_override) {
  check_divisor("avg_pool2d", divisor_override);
  return pool2d("avg_pool2d", input.sizes(), kernel_size, stride, padding, {1, 1}, ceil_mode);
}

Pool2dGeometry avg_pool2d_backward(const at::Tensor& grad_output, at::IntArrayRef input_size,
                                   at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                                   bool ceil_mode, std::optional<int64_t> divisor_override) {
  constexpr const char* kOp = "avg_pool2d_backward";
  check_divisor(kOp, divisor_override);
  const Pool2dGeometry g = pool2d(kOp, input_size, kernel_size, stride, padding, {1, 1}, ceil_mode);
  check_output_shaped(kOp, "grad_output", grad_output.sizes(), g);
  check_floating(kOp, grad_output);
  return g;
}

Pool2dGeometry adaptive_avg_pool2d(const at::Tensor& input, at::IntArrayRef output_size) {
  return adaptive("adaptive_avg_pool2d", input.sizes(), output_size);
}

Pool2dGeometry adaptive_avg_pool2d_backward(const at::Tensor& grad_output, at::IntArrayRef input_size) {
  constexpr const char* kOp = "adaptive_avg_pool2d_backward";
  TORCH_CHECK(grad_output.dim() == 4, prefix(kOp), "expected grad_output [n, c, out_h, out_w], but got grad_output of ",
              "size ", grad_output.sizes());
  const Pool2dGeometry g = adaptive(kOp, input_size, grad_output.sizes().slice(2));
  check_output_shaped(kOp, "grad_output", grad_output.sizes(), g);
  check_floating(kOp, grad_output);
  return g;
}

}  // namespace fastcnn::checks
