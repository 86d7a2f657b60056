// The passes of batch norm over rows of channels, for the ops that are made of them. Rows are cut into tiles by size
// alone, so that the results do not depend on the number of threads.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "../common/geometry.h"

namespace fastcnn::cpu {

using OptionalTensor = std::optional<at::Tensor>;

// Rows of channels, `stride` elements apart.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
};

// Values a channel, in double.
struct Moments {
  std::vector<double> mean, var;
};
// Sums of grad, and of grad * (input - mean).
struct GradSums {
  std::vector<double> grad, product;
};
// What a normalisation's gradient is made of, a channel: grad * scale + (input - mean) * slope + offset.
struct GradFactors {
  std::vector<double> scale, slope, offset;
};

// Values a channel in double; `missing` stands for an absent tensor.
std::vector<double> channel_values(const OptionalTensor& t, int64_t channels, double missing);
// The same values as a tensor of float64, or of `dtype`.
at::Tensor channel_tensor(const std::vector<double>& values, const at::Tensor& like, at::ScalarType dtype);

// [n, c, ...] as rows of neighbouring channels [n, ..., c] in `dtype`; the same memory where it already is that.
at::Tensor rows_of(const at::Tensor& t, at::ScalarType dtype);
template <typename T>
Rows<const T> const_rows(const at::Tensor& rows);

template <typename T>
Moments batch_norm_moments(const BatchNormGeometry& g, Rows<const T> input);

// relu((input - mean) / sqrt(var + eps) * weight + bias + residual), and its ReLU's mask where `mask` is not null.
// There need be no residual.
template <typename T>
void batch_norm_apply(const BatchNormGeometry& g, Rows<const T> input, const Moments& m, const OptionalTensor& weight,
                      const OptionalTensor& bias, Rows<const T> residual, double eps, bool relu, Rows<T> output,
                      uint8_t* mask);

// The sums over what `mask` lets pass of grad_output; and where a result is given, result = addend + grad * scale.
template <typename T>
struct GradSumsResult {
  const std::vector<double>& scale;
  Rows<const T> addend;
  Rows<T> result;
};
template <typename T>
GradSums batch_norm_grad_sums(const BatchNormGeometry& g, Rows<const T> grad_output, Rows<const T> input,
                              const std::vector<double>& mean, const uint8_t* mask,
                              const std::optional<GradSumsResult<T>>& result = std::nullopt);

// weight / s, and with the sums the factors of weight / s * (grad - mean(grad) - (x - mean) / s^2 * mean(grad * (x -
// mean))), s^2 = var + eps.
std::vector<double> batch_norm_scale(const Moments& m, const OptionalTensor& weight, double eps, int64_t channels);
GradFactors batch_norm_grad_factors(const BatchNormGeometry& g, const Moments& m, std::vector<double> scale,
                                    const GradSums& sums, double eps);

// grad * scale + (input - mean) * slope + offset; without an input grad * scale. The residual's gradient, grad, is
// written where it is not null, its rows as far apart as grad_input's.
template <typename T>
void batch_norm_grad_input(const BatchNormGeometry& g, Rows<const T> grad_output, Rows<const T> input,
                           const std::vector<double>& mean, const uint8_t* mask, const GradFactors& factors,
                           Rows<T> grad_input, T* grad_residual);

}  // namespace fastcnn::cpu
