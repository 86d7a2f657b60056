// Batch norm on CUDA tensors, as cpu/batch_norm.cpp: tensors as rows of channels (NHWC). Statistics and workspaces stay
// on the GPU, so nothing here waits for it.
#include <torch/library.h>

#include "../checks/checks.h"
#include "../common/backends.h"
#include "../common/switches.h"
#include "../fallback.h"
#include "batch_norm_launch.h"
#include "tensors.h"

namespace fastcnn::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using RowsResult = layout::RowsResult<empty>;

bool given(const OptionalTensor& t) { return t.has_value() && t->defined(); }

// The dtype of the statistics of a tensor.
at::ScalarType compute_dtype(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

at::TensorOptions channel_options(const Tensor& like, at::ScalarType dtype) { return like.options().dtype(dtype); }

ChannelValues channel_values(const OptionalTensor& t) {
  if (!given(t)) return {};
  return {t->const_data_ptr(), dtype_of(*t), t->stride(0)};
}
ChannelResult channel_result(const Tensor& t) {
  if (!t.defined()) return {};
  return {t.mutable_data_ptr(), dtype_of(t), t.stride(0)};
}

const uint8_t* mask_or_null(const Tensor& mask) { return mask.numel() > 0 ? mask.const_data_ptr<uint8_t>() : nullptr; }

// Rows of channels and how far they are apart.
struct Rows {
  explicit Rows(const Tensor& t)
      : rows(layout::rows_of<empty>(t, t.scalar_type())),
        data(rows.const_data_ptr()),
        stride(layout::row_stride(rows).value()) {}
  Tensor rows;
  const void* data;
  int64_t stride;
};

Tensor workspace(const BatchNormGeometry& g, const Tensor& like) {
  return empty({2, batch_norm_tiles(g), g.channels}, like.options().dtype(at::kDouble));
}

// The batch's mean and variance, and what the mean lost when it was rounded.
struct Statistics {
  Tensor mean, var, mean_rest;
};
Statistics batch_statistics(const BatchNormGeometry& g, const Tensor& input, const Rows& x, cudaStream_t stream) {
  backends::record_kernel("batch_norm_stats");
  const auto make = [&] { return empty({g.channels}, channel_options(input, compute_dtype(input))); };
  const Statistics s{make(), make(), make()};
  const Tensor partial = workspace(g, input);
  const BatchNormMomentsArgs args{g,
                                  dtype_of(input),
                                  x.data,
                                  x.stride,
                                  partial.mutable_data_ptr<double>(),
                                  s.mean.mutable_data_ptr(),
                                  s.mean_rest.mutable_data_ptr(),
                                  s.var.mutable_data_ptr()};
  C10_CUDA_CHECK(launch_batch_norm_moments(args, stream));
  return s;
}

// (output, mean, var, mask). Without mean and var by the batch's own statistics.
Results forward(const BatchNormGeometry& g, const Tensor& input, const OptionalTensor& mean, const OptionalTensor& var,
                const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& residual, double eps,
                bool relu, bool with_mask) {
  const c10::cuda::CUDAGuard guard(input.device());
  const auto bytes = input.options().dtype(at::kByte);
  const Tensor mask = relu && with_mask ? empty({g.rows, g.mask_stride}, bytes) : empty({0}, bytes);
  const RowsResult output(input);
  const bool training = !mean.has_value();
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  if (input.numel() == 0) {
    const auto zeros = [&] {
      if (!training) return Tensor();
      const Tensor values = empty({g.channels}, channel_options(input, compute_dtype(input)));
      if (g.channels > 0) C10_CUDA_CHECK(cudaMemsetAsync(values.mutable_data_ptr(), 0, values.nbytes(), stream));
      return values;
    };
    return {output.finish(), zeros(), zeros(), mask};
  }
  const Rows x(input);
  const Statistics s = training ? batch_statistics(g, input, x, stream) : Statistics{*mean, *var, Tensor()};
  std::optional<Rows> added;
  if (given(residual)) added.emplace(*residual);
  const BatchNormApplyArgs args{g,
                                dtype_of(input),
                                x.data,
                                added ? added->data : nullptr,
                                output.rows.mutable_data_ptr(),
                                mask.numel() > 0 ? mask.mutable_data_ptr<uint8_t>() : nullptr,
                                x.stride,
                                added ? added->stride : 0,
                                channel_values(s.mean),
                                channel_values(s.mean_rest),
                                channel_values(s.var),
                                channel_values(weight),
                                channel_values(bias),
                                eps,
                                relu};
  backends::record_kernel("batch_norm_apply");
  C10_CUDA_CHECK(launch_batch_norm_apply(args, stream));
  return {output.finish(), training ? s.mean : Tensor(), training ? s.var : Tensor(), mask};
}

// What the gradients of one call are made of.
struct Backward {
  const BatchNormGeometry& g;
  const Tensor &grad_output, &input, &mean, &var;
  const OptionalTensor& weight;
  const Tensor& mask;
  double eps;
};

// Each tile's sums.
Tensor grad_sums(const Backward& b, const Rows& dy, const Rows& x, cudaStream_t stream) {
  backends::record_kernel("batch_norm_grad_sums");
  Tensor partial = workspace(b.g, b.input);
  const BatchNormGradSumsArgs args{b.g,      dtype_of(b.input),      dy.data,
                                   x.data,   mask_or_null(b.mask),   dy.stride,
                                   x.stride, channel_values(b.mean), partial.mutable_data_ptr<double>()};
  C10_CUDA_CHECK(launch_batch_norm_grad_sums(args, stream));
  return partial;
}

// Fills the gradients that are defined; `partial` is undefined where no sums are wanted, or all are zero.
Tensor grad_factors(const Backward& b, const Tensor& partial, const Tensor& grad_weight, const Tensor& grad_bias,
                    cudaStream_t stream) {
  Tensor factors = empty({4, b.g.channels}, channel_options(b.input, compute_dtype(b.input)));
  const BatchNormGradFactorsArgs args{b.g,
                                      dtype_of(b.input),
                                      partial.defined() ? partial.const_data_ptr<double>() : nullptr,
                                      channel_values(b.mean),
                                      channel_values(b.var),
                                      channel_values(b.weight),
                                      b.eps,
                                      channel_result(grad_weight),
                                      channel_result(grad_bias),
                                      factors.mutable_data_ptr()};
  C10_CUDA_CHECK(launch_batch_norm_grad_factors(args, stream));
  return factors;
}

void fill_grad_input(const Backward& b, const Rows& dy, const void* x, int64_t x_stride, const Tensor& factors,
                     const Tensor& grad_input, const Tensor& grad_residual, cudaStream_t stream) {
  backends::record_kernel("batch_norm_grad_input");
  const auto data = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; };
  const BatchNormGradInputArgs args{b.g,
                                    dtype_of(b.input),
                                    dy.data,
                                    x,
                                    mask_or_null(b.mask),
                                    dy.stride,
                                    x_stride,
                                    factors.const_data_ptr(),
                                    data(grad_input),
                                    data(grad_residual)};
  C10_CUDA_CHECK(launch_batch_norm_grad_input(args, stream));
}

Results backward(const Backward& b, bool training, std::array<bool, 4> output_mask) {
  const c10::cuda::CUDAGuard guard(b.input.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const bool elementwise = output_mask[0] || output_mask[3];
  const bool reduces = output_mask[1] || output_mask[2] || (training && output_mask[0]);
  const auto param = given(b.weight) ? b.weight->scalar_type() : b.input.scalar_type();
  RowsResult grad_input, grad_residual;
  Tensor grad_weight, grad_bias;
  if (output_mask[0]) grad_input = RowsResult(b.input);
  if (output_mask[1]) grad_weight = empty({b.g.channels}, channel_options(b.input, param));
  if (output_mask[2]) grad_bias = empty({b.g.channels}, channel_options(b.input, param));
  if (output_mask[3]) grad_residual = RowsResult(b.input);
  if (b.input.numel() > 0 && (reduces || elementwise)) {
    const Rows dy(b.grad_output), x(b.input);
    const Tensor partial = reduces ? grad_sums(b, dy, x, stream) : Tensor();
    const Tensor factors = grad_factors(b, partial, grad_weight, grad_bias, stream);
    const bool by_statistics = training && output_mask[0];
    if (elementwise)
      fill_grad_input(b, dy, by_statistics ? x.data : nullptr, x.stride, factors, grad_input.rows, grad_residual.rows,
                      stream);
  } else if (b.g.channels > 0 && reduces) {
    grad_factors(b, Tensor(), grad_weight, grad_bias, stream);
  }
  const auto or_none = [&](const Tensor& t) { return t.defined() ? t : empty({0}, b.input.options()); };
  const auto finish = [&](const RowsResult& r) { return or_none(r.result.defined() ? r.finish() : Tensor()); };
  return {finish(grad_input), or_none(grad_weight), or_none(grad_bias), finish(grad_residual)};
}

Results forward_cuda(const BatchNormGeometry& g, const Tensor& input, const OptionalTensor& mean,
                     const OptionalTensor& var, const OptionalTensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& residual, double eps, bool relu, bool with_mask) {
  if (!is_covered(input.scalar_type()))
    return fallback::batch_norm(input, mean, var, weight, bias, residual, eps, relu, with_mask);
  return forward(g, input, mean, var, weight, bias, residual, eps, relu, with_mask);
}

Results _batch_norm_train_cuda(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                               const OptionalTensor& residual, double eps, bool relu) {
  const auto g = checks::batch_norm_train(input, weight, bias, residual, eps);
  return forward_cuda(g, input, std::nullopt, std::nullopt, weight, bias, residual, eps, relu, /*with_mask=*/true);
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_train_cuda(const Tensor& input, const OptionalTensor& weight,
                                                         const OptionalTensor& bias, const OptionalTensor& residual,
                                                         double eps, bool relu) {
  const auto g = checks::batch_norm_train(input, weight, bias, residual, eps);
  auto [output, mean, var, mask] =
      forward_cuda(g, input, std::nullopt, std::nullopt, weight, bias, residual, eps, relu, /*with_mask=*/false);
  return {output, mean, var};
}

std::tuple<Tensor, Tensor> _batch_norm_infer_cuda(const Tensor& input, const Tensor& mean, const Tensor& var,
                                                  const OptionalTensor& weight, const OptionalTensor& bias,
                                                  const OptionalTensor& residual, double eps, bool relu) {
  const auto g = checks::batch_norm_infer(input, mean, var, weight, bias, residual, eps);
  auto results = forward_cuda(g, input, mean, var, weight, bias, residual, eps, relu, /*with_mask=*/true);
  return {std::get<0>(results), std::get<3>(results)};
}

Tensor batch_norm_infer_cuda(const Tensor& input, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
                             const OptionalTensor& bias, const OptionalTensor& residual, double eps, bool relu) {
  const auto g = checks::batch_norm_infer(input, mean, var, weight, bias, residual, eps);
  return std::get<0>(forward_cuda(g, input, mean, var, weight, bias, residual, eps, relu, /*with_mask=*/false));
}

template <bool kTraining>
Results batch_norm_backward_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& var,
                                 const OptionalTensor& weight, const Tensor& mask, double eps,
                                 std::array<bool, 4> output_mask) {
  const auto g = checks::batch_norm_backward(grad_output, input, mean, var, weight, mask);
  if (!is_covered(input.scalar_type()))
    return fallback::batch_norm_backward(kTraining, grad_output, input, mean, var, weight, mask, eps, output_mask);
  return backward({g, grad_output, input, mean, var, weight, mask, eps}, kTraining, output_mask);
}

void batch_norm_update_cuda(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean,
                            const Tensor& var, double momentum, int64_t rows) {
  checks::batch_norm_update(running_mean, running_var, mean, var, rows);
  if (mean.numel() == 0) return;
  const c10::cuda::CUDAGuard guard(mean.device());
  const double unbiased = static_cast<double>(rows) / static_cast<double>(rows - 1);
  const BatchNormUpdateArgs args{mean.numel(),
                                 channel_result(running_mean),
                                 channel_result(running_var),
                                 channel_values(mean),
                                 channel_values(var),
                                 1 - momentum,
                                 momentum,
                                 momentum * unbiased,
                                 mean.scalar_type() == at::kDouble};
  C10_CUDA_CHECK(launch_batch_norm_update(args, c10::cuda::getCurrentCUDAStream()));
}

}  // namespace
}  // namespace fastcnn::cuda

TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  m.impl("batch_norm_train", fastcnn::cuda::batch_norm_train_cuda);
  m.impl("_batch_norm_train", fastcnn::cuda::_batch_norm_train_cuda);
  m.impl("_batch_norm_train_traced", fastcnn::backends::GivingSwitches<fastcnn::cuda::_batch_norm_train_cuda>::call);
  m.impl("batch_norm_train_backward",
         fastcnn::backends::TakingSwitches<fastcnn::cuda::batch_norm_backward_cuda<true>>::call);
  m.impl("batch_norm_infer", fastcnn::cuda::batch_norm_infer_cuda);
  m.impl("_batch_norm_infer", fastcnn::cuda::_batch_norm_infer_cuda);
  m.impl("_batch_norm_infer_traced", fastcnn::backends::GivingSwitches<fastcnn::cuda::_batch_norm_infer_cuda>::call);
  m.impl("batch_norm_infer_backward",
         fastcnn::backends::TakingSwitches<fastcnn::cuda::batch_norm_backward_cuda<false>>::call);
  m.impl("_batch_norm_update", fastcnn::cuda::batch_norm_update_cuda);
}
