// From tensors and ints to validated geometry. Every message a user can see about an op's arguments is written in this
// room, with the exception type and the key words that torch uses for the same mistake.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "../common/geometry.h"
#include "../common/shared.h"

namespace fastcnn::checks {

FASTCNN_SHARED Conv2dGeometry conv2d(const at::Tensor& input, const at::Tensor& weight,
                                     const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                                     at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups);

// conv2d's checks, and that grad_output has the output's shape and the ReLU's mask as many bits.
FASTCNN_SHARED Conv2dGeometry conv2d_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                              const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
                                              at::IntArrayRef dilation, int64_t groups,
                                              const std::optional<at::Tensor>& activated);

// What a concatenation writes. Empty tensors of shape [0] are skipped, as torch.cat does. In memory the output is
// `rows` rows; each tensor gives every row one run, of its size in `dim` times `inner` elements.
struct Concat {
  int64_t dim;
  at::ScalarType dtype;
  at::MemoryFormat memory_format;
  std::vector<int64_t> sizes;
  int64_t rows, inner;
  std::vector<bool> skipped;  // for each tensor
  bool plain;                 // all are plain bytes: strided, not complex, quantized or with a pending negation
};
FASTCNN_SHARED Concat concat(at::TensorList tensors, int64_t dim);

// The statistics go by the names of F.batch_norm's arguments in messages. A missing optional is left out.
FASTCNN_SHARED BatchNormGeometry batch_norm_train(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                                                  const std::optional<at::Tensor>& bias,
                                                  const std::optional<at::Tensor>& residual, double eps);
FASTCNN_SHARED BatchNormGeometry batch_norm_infer(const at::Tensor& input, const at::Tensor& mean,
                                                  const at::Tensor& var, const std::optional<at::Tensor>& weight,
                                                  const std::optional<at::Tensor>& bias,
                                                  const std::optional<at::Tensor>& residual, double eps);
FASTCNN_SHARED BatchNormGeometry batch_norm_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                                     const at::Tensor& mean, const at::Tensor& var,
                                                     const std::optional<at::Tensor>& weight, const at::Tensor& mask);
FASTCNN_SHARED void batch_norm_update(const at::Tensor& running_mean, const at::Tensor& running_var,
                                      const at::Tensor& mean, const at::Tensor& var, int64_t rows);

// How many channels each layer of a dense block reads, and last how many it gives in all. `input` is the block's, or
// where `is_output` its output.
std::vector<int64_t> dense_block(const at::Tensor& input, bool is_output, at::TensorList parameters,
                                 at::ArrayRef<double> eps);

// True for 'relu', false for none; anything else is an error.
FASTCNN_SHARED bool relu_activation(const char* op, std::optional<std::string_view> activation);

// --- pooling: the geometry of [n, c, h, w] images, with stride the window's size where it is left out ---

FASTCNN_SHARED Pool2dGeometry max_pool2d(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                         at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode);

// max_pool2d's checks, and that offsets can hold the window's taps.
FASTCNN_SHARED Pool2dGeometry max_pool2d_train(const at::Tensor& input, at::IntArrayRef kernel_size,
                                               at::IntArrayRef stride, at::IntArrayRef padding,
                                               at::IntArrayRef dilation, bool ceil_mode);

// max_pool2d's checks, and that the offsets have the output's shape and their dtype.
FASTCNN_SHARED Pool2dGeometry max_pool2d_offsets(const at::Tensor& offsets, at::IntArrayRef input_size,
                                                 at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                                 at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode);
FASTCNN_SHARED Pool2dGeometry max_pool2d_gather(const at::Tensor& values, const at::Tensor& offsets,
                                                at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                                at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode);
FASTCNN_SHARED void max_pool2d_grad_output(const at::Tensor& grad_output, const at::Tensor& offsets,
                                           const Pool2dGeometry& g);

FASTCNN_SHARED Pool2dGeometry avg_pool2d(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                         at::IntArrayRef padding, bool ceil_mode,
                                         std::optional<int64_t> divisor_override);
FASTCNN_SHARED Pool2dGeometry avg_pool2d_backward(const at::Tensor& grad_output, at::IntArrayRef input_size,
                                                  at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                                  at::IntArrayRef padding, bool ceil_mode,
                                                  std::optional<int64_t> divisor_override);

// The geometry's window, stride, padding and dilation stay 0.
FASTCNN_SHARED Pool2dGeometry adaptive_avg_pool2d(const at::Tensor& input, at::IntArrayRef output_size);
FASTCNN_SHARED Pool2dGeometry adaptive_avg_pool2d_backward(const at::Tensor& grad_output, at::IntArrayRef input_size);

}  // namespace fastcnn::checks
