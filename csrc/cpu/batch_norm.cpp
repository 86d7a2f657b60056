// Batch norm on the CPU: allocates, and runs the passes of batch_norm.h over tensors as rows of channels (NHWC).
#include "batch_norm.h"

#include <torch/library.h>

#include <cmath>

#include "../checks/checks.h"
#include "../common/layout.h"
#include "../common/switches.h"
#include "../fallback.h"
#include "dtypes.h"
#include "memory.h"

namespace fastcnn::cpu {
namespace {

using at::Tensor;
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

using RowsResult = layout::RowsResult<empty>;

// (output, mean, var, mask). Without mean and var by the batch's own statistics.
template <typename T>
Results forward(const BatchNormGeometry& g, const Tensor& input, const OptionalTensor& mean, const OptionalTensor& var,
                const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& residual, double eps,
                bool relu, bool with_mask) {
  constexpr auto dtype = kElementDtype<T>;
  const auto bytes = input.options().dtype(at::kByte);
  const Tensor mask = relu && with_mask ? empty({g.rows, g.mask_stride}, bytes) : empty({0}, bytes);
  RowsResult output(input);
  Moments m{channel_values(mean, g.channels, 0), channel_values(var, g.channels, 0)};
  if (input.numel() > 0) {
    const bool adds = residual.has_value() && residual->defined();
    const Tensor rows = rows_of(input, dtype), added = adds ? rows_of(*residual, dtype) : Tensor();
    if (!mean.has_value()) m = batch_norm_moments<T>(g, const_rows<T>(rows));
    batch_norm_apply<T>(g, const_rows<T>(rows), m, weight, bias, adds ? const_rows<T>(added) : Rows<const T>{}, eps,
                        relu, {mutable_data_of<T>(output.rows), g.channels},
                        mask.numel() > 0 ? mask.mutable_data_ptr<uint8_t>() : nullptr);
  }
  if (mean.has_value()) return {output.finish(), Tensor(), Tensor(), mask};
  return {output.finish(), channel_tensor(m.mean, input, kComputeDtype<T>),
          channel_tensor(m.var, input, kComputeDtype<T>), mask};
}

template <typename T>
Results backward(const BatchNormGeometry& g, bool training, const Tensor& grad_output, const Tensor& input,
                 const Tensor& mean, const Tensor& var, const OptionalTensor& weight, const Tensor& mask, double eps,
                 std::array<bool, 4> output_mask) {
  constexpr auto dtype = kElementDtype<T>;
  const int64_t c = g.channels;
  const bool elementwise = output_mask[0] || output_mask[3];
  const bool reduces = output_mask[1] || output_mask[2] || (training && output_mask[0]);
  const auto none = [&] { return empty({0}, input.options()); };
  RowsResult grad_input, grad_residual;
  if (elementwise) grad_input = RowsResult(input);
  if (output_mask[3]) grad_residual = RowsResult(input);
  GradSums sums{std::vector<double>(c, 0), std::vector<double>(c, 0)};
  const Moments m{channel_values(mean, c, 0), channel_values(var, c, 0)};

  if (input.numel() > 0) {
    const Tensor rows = rows_of(input, dtype), grad_rows = rows_of(grad_output, dtype);
    const Rows<const T> x = const_rows<T>(rows), dy = const_rows<T>(grad_rows);
    const uint8_t* bits = mask.numel() > 0 ? mask.const_data_ptr<uint8_t>() : nullptr;
    if (reduces) sums = batch_norm_grad_sums<T>(g, dy, x, m.mean, bits);
    if (elementwise) {
      const GradFactors factors = batch_norm_grad_factors(g, m, batch_norm_scale(m, weight, eps, c), sums, eps);
      const bool by_statistics = training && output_mask[0];
      batch_norm_grad_input<T>(g, dy, by_statistics ? x : Rows<const T>{}, m.mean, bits, factors,
                               {mutable_data_of<T>(grad_input.rows), c},
                               output_mask[3] ? mutable_data_of<T>(grad_residual.rows) : nullptr);
    }
  }
  const bool has_weight = weight.has_value() && weight->defined();
  const auto param = has_weight ? weight->scalar_type() : input.scalar_type();
  for (int64_t i = 0; i < c; ++i) sums.product[i] /= std::sqrt(m.var[i] + eps);
  return {output_mask[0] ? grad_input.finish() : none(),
          output_mask[1] ? channel_tensor(sums.product, input, param) : none(),
          output_mask[2] ? channel_tensor(sums.grad, input, param) : none(),
          output_mask[3] ? grad_residual.finish() : none()};
}

Results forward_cpu(const BatchNormGeometry& g, const Tensor& input, const OptionalTensor& mean,
                    const OptionalTensor& var, const OptionalTensor& weight, const OptionalTensor& bias,
                    const OptionalTensor& residual, double eps, bool relu, bool with_mask) {
  if (!is_covered(input.scalar_type()))
    return fallback::batch_norm(input, mean, var, weight, bias, residual, eps, relu, with_mask);
  return with_element(input.scalar_type(), [&]<typename T>() {
    return forward<T>(g, input, mean, var, weight, bias, residual, eps, relu, with_mask);
  });
}

Results _batch_norm_train_cpu(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& residual, double eps, bool relu) {
  const auto g = checks::batch_norm_train(input, weight, bias, residual, eps);
  return forward_cpu(g, input, std::nullopt, std::nullopt, weight, bias, residual, eps, relu, /*with_mask=*/true);
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_train_cpu(const Tensor& input, const OptionalTensor& weight,
                                                        const OptionalTensor& bias, const OptionalTensor& residual,
                                                        double eps, bool relu) {
  const auto g = checks::batch_norm_train(input, weight, bias, residual, eps);
  auto [output, mean, var, mask] =
      forward_cpu(g, input, std::nullopt, std::nullopt, weight, bias, residual, eps, relu, /*with_mask=*/false);
  return {output, mean, var};
}

std::tuple<Tensor, Tensor> _batch_norm_infer_cpu(const Tensor& input, const Tensor& mean, const Tensor& var,
                                                 const OptionalTensor& weight, const OptionalTensor& bias,
                                                 const OptionalTensor& residual, double eps, bool relu) {
  const auto g = checks::batch_norm_infer(input, mean, var, weight, bias, residual, eps);
  auto results = forward_cpu(g, input, mean, var, weight, bias, residual, eps, relu, /*with_mask=*/true);
  return {std::get<0>(results), std::get<3>(results)};
}

Tensor batch_norm_infer_cpu(const Tensor& input, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& residual, double eps, bool relu) {
  const auto g = checks::batch_norm_infer(input, mean, var, weight, bias, residual, eps);
  return std::get<0>(forward_cpu(g, input, mean, var, weight, bias, residual, eps, relu, /*with_mask=*/false));
}

template <bool kTraining>
Results batch_norm_backward_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& var,
                                const OptionalTensor& weight, const Tensor& mask, double eps,
                                std::array<bool, 4> output_mask) {
  const auto g = checks::batch_norm_backward(grad_output, input, mean, var, weight, mask);
  if (!is_covered(input.scalar_type()))
    return fallback::batch_norm_backward(kTraining, grad_output, input, mean, var, weight, mask, eps, output_mask);
  return with_element(input.scalar_type(), [&]<typename T>() {
    return backward<T>(g, kTraining, grad_output, input, mean, var, weight, mask, eps, output_mask);
  });
}

// running = (1 - momentum) * running + momentum * factor * batch
template <typename T>
void move_running(const Tensor& running, const Tensor& batch, double momentum, double factor) {
  constexpr auto kDtype = c10::CppTypeToScalarType<T>::value;
  const Tensor moved = running.to(kDtype).contiguous(), dense = batch.to(kDtype).contiguous();
  T* r = moved.mutable_data_ptr<T>();
  const T* b = dense.const_data_ptr<T>();
  const T keep = static_cast<T>(1 - momentum), take = static_cast<T>(momentum * factor);
  for (int64_t i = 0; i < moved.numel(); ++i) r[i] = keep * r[i] + take * b[i];
  if (!moved.is_same(running)) running.copy_(moved);
}

void batch_norm_update_cpu(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean, const Tensor& var,
                           double momentum, int64_t rows) {
  checks::batch_norm_update(running_mean, running_var, mean, var, rows);
  const double unbiased = static_cast<double>(rows) / static_cast<double>(rows - 1);
  const auto move = mean.scalar_type() == at::kDouble ? move_running<double> : move_running<float>;
  move(running_mean, mean, momentum, 1);
  move(running_var, var, momentum, unbiased);
}

}  // namespace
}  // namespace fastcnn::cpu

TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("_batch_norm_update", fastcnn::cpu::batch_norm_update_cpu);
  m.impl("batch_norm_train", fastcnn::cpu::batch_norm_train_cpu);
  m.impl("_batch_norm_train", fastcnn::cpu::_batch_norm_train_cpu);
  m.impl("_batch_norm_train_traced", fastcnn::backends::GivingSwitches<fastcnn::cpu::_batch_norm_train_cpu>::call);
  m.impl("batch_norm_train_backward",
         fastcnn::backends::TakingSwitches<fastcnn::cpu::batch_norm_backward_cpu<true>>::call);
  m.impl("batch_norm_infer", fastcnn::cpu::batch_norm_infer_cpu);
  m.impl("_batch_norm_infer", fastcnn::cpu::_batch_norm_infer_cpu);
  m.impl("_batch_norm_infer_traced", fastcnn::backends::GivingSwitches<fastcnn::cpu::_batch_norm_infer_cpu>::call);
  m.impl("batch_norm_infer_backward",
         fastcnn::backends::TakingSwitches<fastcnn::cpu::batch_norm_backward_cpu<false>>::call);
}
