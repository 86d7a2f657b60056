// The ops as C++ functions that go through the dispatcher: what autograd and other ops call, never each other's
// kernels.
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

// Batch norm by the batch's own statistics, and by given ones; then + residual, then ReLU if asked. The variance is
// the biased one. The gradients are those of input, weight, bias and residual.
std::tuple<Tensor, Tensor, Tensor> batch_norm_train(const Tensor& input, const OptionalTensor& weight,
                                                    const OptionalTensor& bias, const OptionalTensor& residual,
                                                    double eps, bool relu);
std::tuple<Tensor, Tensor, Tensor, Tensor> _batch_norm_train(const Tensor& input, const OptionalTensor& weight,
                                                             const OptionalTensor& bias, const OptionalTensor& residual,
                                                             double eps, bool relu);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> _batch_norm_train_traced(const Tensor& input,
                                                                            const OptionalTensor& weight,
                                                                            const OptionalTensor& bias,
                                                                            const OptionalTensor& residual, double eps,
                                                                            bool relu);
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_train_backward(const Tensor& grad_output, const Tensor& input,
                                                                     const Tensor& mean, const Tensor& var,
                                                                     const OptionalTensor& weight, const Tensor& mask,
                                                                     double eps, std::array<bool, 4> output_mask,
                                                                     const OptionalTensor& switches);
Tensor batch_norm_infer(const Tensor& input, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& residual, double eps, bool relu);
std::tuple<Tensor, Tensor> _batch_norm_infer(const Tensor& input, const Tensor& mean, const Tensor& var,
                                             const OptionalTensor& weight, const OptionalTensor& bias,
                                             const OptionalTensor& residual, double eps, bool relu);
std::tuple<Tensor, Tensor, Tensor> _batch_norm_infer_traced(const Tensor& input, const Tensor& mean, const Tensor& var,
                                                            const OptionalTensor& weight, const OptionalTensor& bias,
                                                            const OptionalTensor& residual, double eps, bool relu);
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_infer_backward(const Tensor& grad_output, const Tensor& input,
                                                                     const Tensor& mean, const Tensor& var,
                                                                     const OptionalTensor& weight, const Tensor& mask,
                                                                     double eps, std::array<bool, 4> output_mask,
                                                                     const OptionalTensor& switches);

void _batch_norm_update(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean, const Tensor& var,
                        double momentum, c10::SymInt rows);

Tensor concat(at::TensorList tensors, int64_t dim);

Tensor conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, c10::SymIntArrayRef stride,
              c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
              std::optional<std::string_view> activation);

std::tuple<Tensor, Tensor> _conv2d_traced(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                          c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                          c10::SymIntArrayRef dilation, c10::SymInt groups,
                                          std::optional<std::string_view> activation);

// Gradients that output_mask does not ask for come back as empty tensors.
std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                                   c10::SymIntArrayRef dilation, c10::SymInt groups,
                                                   std::array<bool, 3> output_mask, const OptionalTensor& activated,
                                                   const OptionalTensor& switches);

Tensor _relu_mask(const Tensor& output);

// --- dense block ---

std::tuple<Tensor, Tensor, Tensor> dense_block_train(const Tensor& input, at::TensorList parameters,
                                                     at::ArrayRef<double> eps);
std::tuple<Tensor, Tensor, Tensor, Tensor> _dense_block_train_traced(const Tensor& input, at::TensorList parameters,
                                                                     at::ArrayRef<double> eps);
Tensor dense_block_infer(const Tensor& input, at::TensorList statistics, at::TensorList parameters,
                         at::ArrayRef<double> eps);
std::tuple<Tensor, Tensor> _dense_block_infer_traced(const Tensor& input, at::TensorList statistics,
                                                     at::TensorList parameters, at::ArrayRef<double> eps);
std::vector<Tensor> dense_block_train_backward(const Tensor& grad_output, const Tensor& features,
                                               at::TensorList statistics, at::TensorList parameters,
                                               at::ArrayRef<double> eps, c10::List<bool> output_mask,
                                               const OptionalTensor& switches);
std::vector<Tensor> dense_block_infer_backward(const Tensor& grad_output, const Tensor& features,
                                               at::TensorList statistics, at::TensorList parameters,
                                               at::ArrayRef<double> eps, c10::List<bool> output_mask,
                                               const OptionalTensor& switches);

// --- pooling: `offsets` say which tap of a window won, see library.cpp ---

Tensor max_pool2d(const Tensor& input, c10::SymIntArrayRef kernel_size, c10::SymIntArrayRef stride,
                  c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool ceil_mode);

std::tuple<Tensor, Tensor> max_pool2d_with_indices(const Tensor& input, c10::SymIntArrayRef kernel_size,
                                                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                                   c10::SymIntArrayRef dilation, bool ceil_mode);

// The output and its offsets.
std::tuple<Tensor, Tensor> _max_pool2d_train(const Tensor& input, c10::SymIntArrayRef kernel_size,
                                             c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                             c10::SymIntArrayRef dilation, bool ceil_mode);

Tensor _max_pool2d_indices(const Tensor& offsets, c10::SymIntArrayRef input_size, c10::SymIntArrayRef kernel_size,
                           c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                           bool ceil_mode, at::MemoryFormat memory_format);

// The transpose of max_pool2d_backward: the elements of `values` that won.
Tensor _max_pool2d_gather(const Tensor& values, const Tensor& offsets, c10::SymIntArrayRef kernel_size,
                          c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                          bool ceil_mode);

Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& offsets, c10::SymIntArrayRef input_size,
                           c10::SymIntArrayRef kernel_size, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                           c10::SymIntArrayRef dilation, bool ceil_mode, at::MemoryFormat memory_format);

Tensor avg_pool2d(const Tensor& input, c10::SymIntArrayRef kernel_size, c10::SymIntArrayRef stride,
                  c10::SymIntArrayRef padding, bool ceil_mode, bool count_include_pad,
                  std::optional<c10::SymInt> divisor_override);

Tensor avg_pool2d_backward(const Tensor& grad_output, c10::SymIntArrayRef input_size, c10::SymIntArrayRef kernel_size,
                           c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, bool ceil_mode,
                           bool count_include_pad, std::optional<c10::SymInt> divisor_override,
                           at::MemoryFormat memory_format);

Tensor adaptive_avg_pool2d(const Tensor& input, c10::SymIntArrayRef output_size);

Tensor adaptive_avg_pool2d_backward(const Tensor& grad_output, c10::SymIntArrayRef input_size,
                                    at::MemoryFormat memory_format);

}  // namespace fastcnn::ops
