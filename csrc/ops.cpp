// Dispatcher handles of the ops in ops.h, each looked up once.
#include "ops.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace fastcnn::ops {
namespace {

template <typename Function>
auto find(const char* name, Function*) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

}  // namespace

#define FASTCNN_CALL(name, ...)                                      \
  static auto handle = find("fastcnn::" #name, &fastcnn::ops::name); \
  return handle.call(__VA_ARGS__)

std::tuple<Tensor, Tensor, Tensor> batch_norm_train(const Tensor& input, const OptionalTensor& weight,
                                                    const OptionalTensor& bias, const OptionalTensor& residual,
                                                    double eps, bool relu) {
  FASTCNN_CALL(batch_norm_train, input, weight, bias, residual, eps, relu);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> _batch_norm_train(const Tensor& input, const OptionalTensor& weight,
                                                             const OptionalTensor& bias, const OptionalTensor& residual,
                                                             double eps, bool relu) {
  FASTCNN_CALL(_batch_norm_train, input, weight, bias, residual, eps, relu);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> _batch_norm_train_traced(const Tensor& input,
                                                                            const OptionalTensor& weight,
                                                                            const OptionalTensor& bias,
                                                                            const OptionalTensor& residual, double eps,
                                                                            bool relu) {
  FASTCNN_CALL(_batch_norm_train_traced, input, weight, bias, residual, eps, relu);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_train_backward(const Tensor& grad_output, const Tensor& input,
                                                                     const Tensor& mean, const Tensor& var,
                                                                     const OptionalTensor& weight, const Tensor& mask,
                                                                     double eps, std::array<bool, 4> output_mask,
                                                                     const OptionalTensor& switches) {
  FASTCNN_CALL(batch_norm_train_backward, grad_output, input, mean, var, weight, mask, eps, output_mask, switches);
}

Tensor batch_norm_infer(const Tensor& input, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& residual, double eps, bool relu) {
  FASTCNN_CALL(batch_norm_infer, input, mean, var, weight, bias, residual, eps, relu);
}

std::tuple<Tensor, Tensor> _batch_norm_infer(const Tensor& input, const Tensor& mean, const Tensor& var,
                                             const OptionalTensor& weight, const OptionalTensor& bias,
                                             const OptionalTensor& residual, double eps, bool relu) {
  FASTCNN_CALL(_batch_norm_infer, input, mean, var, weight, bias, residual, eps, relu);
}

std::tuple<Tensor, Tensor, Tensor> _batch_norm_infer_traced(const Tensor& input, const Tensor& mean, const Tensor& var,
                                                            const OptionalTensor& weight, const OptionalTensor& bias,
                                                            const OptionalTensor& residual, double eps, bool relu) {
  FASTCNN_CALL(_batch_norm_infer_traced, input, mean, var, weight, bias, residual, eps, relu);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_infer_backward(const Tensor& grad_output, const Tensor& input,
                                                                     const Tensor& mean, const Tensor& var,
                                                                     const OptionalTensor& weight, const Tensor& mask,
                                                                     double eps, std::array<bool, 4> output_mask,
                                                                     const OptionalTensor& switches) {
  FASTCNN_CALL(batch_norm_infer_backward, grad_output, input, mean, var, weight, mask, eps, output_mask, switches);
}

void _batch_norm_update(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean, const Tensor& var,
                        double momentum, c10::SymInt rows) {
  FASTCNN_CALL(_batch_norm_update, running_mean, running_var, mean, var, momentum, rows);
}

Tensor concat(at::TensorList tensors, int64_t dim) { FASTCNN_CALL(concat, tensors, dim); }

Tensor conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, c10::SymIntArrayRef stride,
              c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
              std::optional<std::string_view> activation) {
  FASTCNN_CALL(conv2d, input, weight, bias, stride, padding, dilation, groups, activation);
}

std::tuple<Tensor, Tensor> _conv2d_traced(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                          c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                          c10::SymIntArrayRef dilation, c10::SymInt groups,
                                          std::optional<std::string_view> activation) {
  FASTCNN_CALL(_conv2d_traced, input, weight, bias, stride, padding, dilation, groups, activation);
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                                   c10::SymIntArrayRef dilation, c10::SymInt groups,
                                                   std::array<bool, 3> output_mask, const OptionalTensor& activated,
                                                   const OptionalTensor& switches) {
  FASTCNN_CALL(conv2d_backward, grad_output, input, weight, stride, padding, dilation, groups, output_mask, activated,
               switches);
}

Tensor _relu_mask(const Tensor& output) { FASTCNN_CALL(_relu_mask, output); }

// --- dense block ---

std::tuple<Tensor, Tensor, Tensor> dense_block_train(const Tensor& input, at::TensorList parameters,
                                                     at::ArrayRef<double> eps) {
  FASTCNN_CALL(dense_block_train, input, parameters, eps);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> _dense_block_train_traced(const Tensor& input, at::TensorList parameters,
                                                                     at::ArrayRef<double> eps) {
  FASTCNN_CALL(_dense_block_train_traced, input, parameters, eps);
}

Tensor dense_block_infer(const Tensor& input, at::TensorList statistics, at::TensorList parameters,
                         at::ArrayRef<double> eps) {
  FASTCNN_CALL(dense_block_infer, input, statistics, parameters, eps);
}

std::tuple<Tensor, Tensor> _dense_block_infer_traced(const Tensor& input, at::TensorList statistics,
                                                     at::TensorList parameters, at::ArrayRef<double> eps) {
  FASTCNN_CALL(_dense_block_infer_traced, input, statistics, parameters, eps);
}

std::vector<Tensor> dense_block_train_backward(const Tensor& grad_output, const Tensor& features,
                                               at::TensorList statistics, at::TensorList parameters,
                                               at::ArrayRef<double> eps, c10::List<bool> output_mask,
                                               const OptionalTensor& switches) {
  FASTCNN_CALL(dense_block_train_backward, grad_output, features, statistics, parameters, eps, output_mask, switches);
}

std::vector<Tensor> dense_block_infer_backward(const Tensor& grad_output, const Tensor& features,
                                               at::TensorList statistics, at::TensorList parameters,
                                               at::ArrayRef<double> eps, c10::List<bool> output_mask,
                                               const OptionalTensor& switches) {
  FASTCNN_CALL(dense_block_infer_backward, grad_output, features, statistics, parameters, eps, output_mask, switches);
}

// --- pooling ---

Tensor max_pool2d(const Tensor& input, c10::SymIntArrayRef kernel_size, c10::SymIntArrayRef stride,
                  c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool ceil_mode) {
  FASTCNN_CALL(max_pool2d, input, kernel_size, stride, padding, dilation, ceil_mode);
}

std::tuple<Tensor, Tensor> max_pool2d_with_indices(const Tensor& input, c10::SymIntArrayRef kernel_size,
                                                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                                   c10::SymIntArrayRef dilation, bool ceil_mode) {
  FASTCNN_CALL(max_pool2d_with_indices, input, kernel_size, stride, padding, dilation, ceil_mode);
}

std::tuple<Tensor, Tensor> _max_pool2d_train(const Tensor& input, c10::SymIntArrayRef kernel_size,
                                             c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                             c10::SymIntArrayRef dilation, bool ceil_mode) {
  FASTCNN_CALL(_max_pool2d_train, input, kernel_size, stride, padding, dilation, ceil_mode);
}

Tensor _max_pool2d_indices(const Tensor& offsets, c10::SymIntArrayRef input_size, c10::SymIntArrayRef kernel_size,
                           c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                           bool ceil_mode, at::MemoryFormat memory_format) {
  FASTCNN_CALL(_max_pool2d_indices, offsets, input_size, kernel_size, stride, padding, dilation, ceil_mode,
               memory_format);
}

Tensor _max_pool2d_gather(const Tensor& values, const Tensor& offsets, c10::SymIntArrayRef kernel_size,
                          c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                          bool ceil_mode) {
  FASTCNN_CALL(_max_pool2d_gather, values, offsets, kernel_size, stride, padding, dilation, ceil_mode);
}

Tensor max_pool2d_backward(const Tensor& grad_output, const Tensor& offsets, c10::SymIntArrayRef input_size,
                           c10::SymIntArrayRef kernel_size, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                           c10::SymIntArrayRef dilation, bool ceil_mode, at::MemoryFormat memory_format) {
  FASTCNN_CALL(max_pool2d_backward, grad_output, offsets, input_size, kernel_size, stride, padding, dilation, ceil_mode,
               memory_format);
}

Tensor avg_pool2d(const Tensor& input, c10::SymIntArrayRef kernel_size, c10::SymIntArrayRef stride,
                  c10::SymIntArrayRef padding, bool ceil_mode, bool count_include_pad,
                  std::optional<c10::SymInt> divisor_override) {
  FASTCNN_CALL(avg_pool2d, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
}

Tensor avg_pool2d_backward(const Tensor& grad_output, c10::SymIntArrayRef input_size, c10::SymIntArrayRef kernel_size,
                           c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, bool ceil_mode,
                           bool count_include_pad, std::optional<c10::SymInt> divisor_override,
                           at::MemoryFormat memory_format) {
  FASTCNN_CALL(avg_pool2d_backward, grad_output, input_size, kernel_size, stride, padding, ceil_mode, count_include_pad,
               divisor_override, memory_format);
}

Tensor adaptive_avg_pool2d(const Tensor& input, c10::SymIntArrayRef output_size) {
  FASTCNN_CALL(adaptive_avg_pool2d, input, output_size);
}

Tensor adaptive_avg_pool2d_backward(const Tensor& grad_output, c10::SymIntArrayRef input_size,
                                    at::MemoryFormat memory_format) {
  FASTCNN_CALL(adaptive_avg_pool2d_backward, grad_output, input_size, memory_format);
}

}  // namespace fastcnn::ops
