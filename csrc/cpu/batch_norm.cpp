// Batch norm on the CPU: tensors as rows of channels (NHWC), cut into tiles by size alone, so that the results do not
// depend on the number of threads. One pass reduces, a second one applies, in reverse order: it finds its tiles in
// cache.
#include <torch/library.h>

#include <cmath>

#include "../checks/checks.h"
#include "../common/switches.h"
#include "../fallback.h"
#include "capability.h"
#include "dtypes.h"
#include "memory.h"
#include "parallel.h"
#include "rows.h"

namespace fastcnn::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Measured on two EPYC 9004 cores with 1 MB of L2 each. A tile is one thread's unit of work; a block is what a
// reduction sums in the element type before double takes over.
constexpr int64_t kTileBytes = 128 * 1024;
constexpr int64_t kTileChannels = 512;  // a multiple of every register's lanes and of the mask's 8
constexpr int64_t kBlockBytes = 64 * 1024;
constexpr int64_t kMinBlockRows = 32, kMaxBlockRows = 128;
constexpr int64_t kGrainTiles = 2;  // a thread's least work

struct Tile {
  int64_t index;  // among the tiles of rows
  int64_t row, rows, channel, channels;
};

// The grid of tiles over rows x channels.
class Tiles {
 public:
  Tiles(const BatchNormGeometry& g, int64_t element_size) : g_(g) {
    tile_channels_ = std::max<int64_t>(1, std::min(kTileChannels, g.channels));
    const int64_t row_bytes = tile_channels_ * element_size;
    block_rows_ = std::clamp(kBlockBytes / row_bytes, kMinBlockRows, kMaxBlockRows);
    tile_rows_ = std::max<int64_t>(1, kTileBytes / (row_bytes * block_rows_)) * block_rows_;
    along_rows_ = ceil_div(g.rows, tile_rows_);
    along_channels_ = ceil_div(g.channels, tile_channels_);
  }

  int64_t along_rows() const { return along_rows_; }
  int64_t block_rows() const { return block_rows_; }
  int64_t rows_of(int64_t index) const { return std::min(tile_rows_, g_.rows - index * tile_rows_); }

  template <typename Work>
  void run(bool reversed, const Work& work) const {
    parallel_for(0, along_rows_ * along_channels_, kGrainTiles, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = reversed ? begin + end - 1 - i : i;
        const int64_t index = t / along_channels_, channel = t % along_channels_ * tile_channels_;
        work(Tile{index, index * tile_rows_, rows_of(index), channel, std::min(tile_channels_, g_.channels - channel)});
      }
    });
  }

 private:
  BatchNormGeometry g_;
  int64_t tile_rows_, tile_channels_, block_rows_, along_rows_, along_channels_;
};

// [n, c, ...] as dense rows of channels [n, ..., c] in `dtype`; the same memory where it already is that.
Tensor as_rows(const Tensor& t, at::ScalarType dtype) {
  const Tensor rows = t.movedim(1, -1);
  if (rows.scalar_type() == dtype && rows.is_contiguous()) return rows;
  return empty(rows.sizes(), t.options().dtype(dtype)).copy_(rows);
}
Tensor as_rows(const OptionalTensor& t, at::ScalarType dtype) {
  return t.has_value() && t->defined() ? as_rows(*t, dtype) : Tensor();
}

// A new tensor of the shape, dtype and memory format of `like`, written as rows: into its own memory where that is laid
// out so, otherwise into a buffer that finish() copies.
struct RowsResult {
  Tensor result, rows;

  RowsResult() = default;
  RowsResult(const Tensor& like, at::ScalarType dtype)
      : result(empty(like.sizes(), like.options().memory_format(like.suggest_memory_format()))),
        rows(result.movedim(1, -1)) {
    if (result.scalar_type() != dtype || !rows.is_contiguous()) rows = empty(rows.sizes(), like.options().dtype(dtype));
  }
  Tensor finish() const {
    if (result.data_ptr() != rows.data_ptr()) result.copy_(rows.movedim(-1, 1));
    return result;
  }
};

template <typename T>
const T* data_or_null(const Tensor& t) {
  return t.defined() ? t.const_data_ptr<T>() : nullptr;
}
template <typename T>
T* offset(T* p, int64_t elements) {
  return p != nullptr ? p + elements : nullptr;
}

// Values a channel in double, where they are computed with; `missing` stands for an absent tensor.
std::vector<double> channel_values(const OptionalTensor& t, int64_t channels, double missing) {
  std::vector<double> values(channels, missing);
  if (!t.has_value() || !t->defined()) return values;
  if (t->scalar_type() == at::kFloat) {  // the common case, without tensors in between
    const float* p = t->const_data_ptr<float>();
    for (int64_t i = 0; i < channels; ++i) values[i] = p[i * t->stride(0)];
    return values;
  }
  const Tensor wide = t->to(at::kDouble).contiguous();
  std::copy_n(wide.const_data_ptr<double>(), channels, values.begin());
  return values;
}
Tensor channel_tensor(const std::vector<double>& values, const Tensor& like, at::ScalarType dtype) {
  const auto direct = dtype == at::kFloat ? at::kFloat : at::kDouble;
  Tensor t = empty({static_cast<int64_t>(values.size())}, like.options().dtype(direct));
  if (dtype == at::kFloat) {
    std::copy(values.begin(), values.end(), t.mutable_data_ptr<float>());
    return t;
  }
  std::copy(values.begin(), values.end(), t.mutable_data_ptr<double>());
  return t.to(dtype);
}
template <typename T>
std::vector<T> narrowed(const std::vector<double>& values) {
  return std::vector<T>(values.begin(), values.end());
}

struct Moments {
  std::vector<double> mean, var;
};

template <typename T>
Moments batch_moments(const BatchNormGeometry& g, const Tiles& tiles, const Tensor& input) {
  backends::record_kernel("batch_norm_stats");
  // 1. Each tile's sums, and squared distances from the tile's mean.
  const int64_t c = g.channels;
  std::vector<double> sums(tiles.along_rows() * c), squares(tiles.along_rows() * c);
  const T* x = input.const_data_ptr<T>();
  tiles.run(/*reversed=*/false, [&](const Tile& t) {
    const int64_t at = t.index * c + t.channel;
    kernels().of<T>().batch_norm_stats(
        {x + t.row * c + t.channel, t.rows, t.channels, c, tiles.block_rows(), sums.data() + at, squares.data() + at});
  });
  // 2. Merged in order: Chan, Golub and LeVeque 1979.
  Moments m{std::vector<double>(c, 0), std::vector<double>(c, 0)};
  double before = 0;
  for (int64_t index = 0; index < tiles.along_rows(); ++index) {
    const double n = static_cast<double>(tiles.rows_of(index));
    const double inverse = 1 / n, inverse_before = before > 0 ? 1 / before : 0, weight = before * n / (before + n);
    const double *sum = sums.data() + index * c, *square = squares.data() + index * c;
    for (int64_t i = 0; i < c; ++i) {
      const double distance = sum[i] * inverse - m.mean[i] * inverse_before;
      m.var[i] += square[i] + distance * distance * weight;
      m.mean[i] += sum[i];  // the sum so far
    }
    before += n;
  }
  for (int64_t i = 0; i < c; ++i) {
    m.mean[i] /= before;
    m.var[i] /= before;
    if (m.var[i] < 0) m.var[i] = 0;
  }
  return m;
}

template <typename T>
void apply(const BatchNormGeometry& g, const Tiles& tiles, const Tensor& input, const Moments& m,
           const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& residual, double eps, bool relu,
           const Tensor& output, const Tensor& mask) {
  backends::record_kernel("batch_norm_apply");
  // The mean's part that T does not hold goes into the shift: it matters where mean >> standard deviation.
  const int64_t c = g.channels;
  std::vector<double> scale = channel_values(weight, c, 1), shift = channel_values(bias, c, 0);
  const std::vector<T> mean = narrowed<T>(m.mean);
  for (int64_t i = 0; i < c; ++i) {
    scale[i] /= std::sqrt(m.var[i] + eps);
    shift[i] -= (m.mean[i] - static_cast<double>(mean[i])) * scale[i];
  }
  const std::vector<T> scales = narrowed<T>(scale), shifts = narrowed<T>(shift);
  const T *x = input.const_data_ptr<T>(), *r = data_or_null<T>(residual);
  T* y = output.mutable_data_ptr<T>();
  uint8_t* bits = mask.numel() > 0 ? mask.mutable_data_ptr<uint8_t>() : nullptr;
  tiles.run(/*reversed=*/true, [&](const Tile& t) {
    const int64_t at = t.row * c + t.channel;
    kernels().of<T>().batch_norm_apply(
        {x + at, offset(r, at), mean.data() + t.channel, scales.data() + t.channel, shifts.data() + t.channel, y + at,
         offset(bits, t.row * g.mask_stride + t.channel / 8), t.rows, t.channels, c, g.mask_stride, relu});
  });
}

// (output, mean, var, mask). Without mean and var by the batch's own statistics.
template <typename T>
Results forward(const BatchNormGeometry& g, const Tensor& input, const OptionalTensor& mean, const OptionalTensor& var,
                const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& residual, double eps,
                bool relu, bool with_mask) {
  constexpr auto dtype = c10::CppTypeToScalarType<T>::value;
  const auto bytes = input.options().dtype(at::kByte);
  const Tensor mask = relu && with_mask ? empty({g.rows, g.mask_stride}, bytes) : empty({0}, bytes);
  RowsResult output(input, dtype);
  Moments m{channel_values(mean, g.channels, 0), channel_values(var, g.channels, 0)};
  if (input.numel() > 0) {
    const Tiles tiles(g, sizeof(T));
    const Tensor rows = as_rows(input, dtype);
    if (!mean.has_value()) m = batch_moments<T>(g, tiles, rows);
    apply<T>(g, tiles, rows, m, weight, bias, as_rows(residual, dtype), eps, relu, output.rows, mask);
  }
  if (mean.has_value()) return {output.finish(), Tensor(), Tensor(), mask};
  return {output.finish(), channel_tensor(m.mean, input, dtype), channel_tensor(m.var, input, dtype), mask};
}

struct GradSums {
  std::vector<double> grad, product;  // sums of grad, and of grad * (input - mean)
};

template <typename T>
GradSums grad_sums(const BatchNormGeometry& g, const Tiles& tiles, const Tensor& grad_output, int64_t grad_stride,
                   const Tensor& input, const std::vector<T>& mean, const uint8_t* mask) {
  backends::record_kernel("batch_norm_grad_sums");
  const int64_t c = g.channels;
  std::vector<double> sums(tiles.along_rows() * c), products(tiles.along_rows() * c);
  const T *dy = grad_output.const_data_ptr<T>(), *x = input.const_data_ptr<T>();
  tiles.run(/*reversed=*/false, [&](const Tile& t) {
    const int64_t at = t.row * c + t.channel, part = t.index * c + t.channel;
    kernels().of<T>().batch_norm_grad_sums({dy + t.row * grad_stride + t.channel, x + at,
                                            offset(mask, t.row * g.mask_stride + t.channel / 8),
                                            mean.data() + t.channel, t.rows, t.channels, c, grad_stride, g.mask_stride,
                                            tiles.block_rows(), sums.data() + part, products.data() + part});
  });
  GradSums total{std::vector<double>(c, 0), std::vector<double>(c, 0)};
  for (int64_t index = 0; index < tiles.along_rows(); ++index)
    for (int64_t i = 0; i < c; ++i) {
      total.grad[i] += sums[index * c + i];
      total.product[i] += products[index * c + i];
    }
  return total;
}

template <typename T>
Results backward(const BatchNormGeometry& g, bool training, const Tensor& grad_output, const Tensor& input,
                 const Tensor& mean, const Tensor& var, const OptionalTensor& weight, const Tensor& mask, double eps,
                 std::array<bool, 4> output_mask) {
  constexpr auto dtype = c10::CppTypeToScalarType<T>::value;
  const int64_t c = g.channels;
  const bool elementwise = output_mask[0] || output_mask[3];
  const bool reduces = output_mask[1] || output_mask[2] || (training && output_mask[0]);
  const auto none = [&] { return empty({0}, input.options()); };
  RowsResult grad_input, grad_residual;
  if (elementwise) grad_input = RowsResult(input, dtype);
  if (output_mask[3]) grad_residual = RowsResult(input, dtype);
  GradSums sums{std::vector<double>(c, 0), std::vector<double>(c, 0)};
  const std::vector<double> variance = channel_values(var, c, 0), exact_mean = channel_values(mean, c, 0);
  std::vector<double> inverse(c);
  for (int64_t i = 0; i < c; ++i) inverse[i] = 1 / std::sqrt(variance[i] + eps);

  if (input.numel() > 0) {
    const Tiles tiles(g, sizeof(T));
    const Tensor x = as_rows(input, dtype), moved = grad_output.movedim(1, -1);
    const std::optional<int64_t> apart = moved.scalar_type() == dtype ? row_stride(moved) : std::nullopt;
    const Tensor dy = apart ? moved : as_rows(grad_output, dtype);
    const int64_t grad_stride = apart.value_or(c);
    const uint8_t* bits = mask.numel() > 0 ? mask.const_data_ptr<uint8_t>() : nullptr;
    const std::vector<T> means = narrowed<T>(exact_mean);
    if (reduces) sums = grad_sums<T>(g, tiles, dy, grad_stride, x, means, bits);
    if (elementwise) {
      backends::record_kernel("batch_norm_grad_input");
      // grad_input = weight / s * (grad - mean(grad) - (x - mean) / s^2 * mean(grad * (x - mean))), s^2 = var + eps;
      // in inference its first term only.
      std::vector<double> scale = channel_values(weight, c, 1), slope(c), shift(c);
      for (int64_t i = 0; i < c; ++i) {
        scale[i] *= inverse[i];
        slope[i] = -scale[i] * inverse[i] * inverse[i] * sums.product[i] / static_cast<double>(g.rows);
        shift[i] = -scale[i] * sums.grad[i] / static_cast<double>(g.rows);
      }
      const std::vector<T> scales = narrowed<T>(scale), slopes = narrowed<T>(slope), shifts = narrowed<T>(shift);
      const T *grad = dy.const_data_ptr<T>(), *in = training && output_mask[0] ? x.const_data_ptr<T>() : nullptr;
      T* dx = grad_input.rows.template mutable_data_ptr<T>();
      T* dr = output_mask[3] ? grad_residual.rows.template mutable_data_ptr<T>() : nullptr;
      tiles.run(/*reversed=*/true, [&](const Tile& t) {
        const int64_t at = t.row * c + t.channel, k = t.channel;
        kernels().of<T>().batch_norm_grad_input({grad + t.row * grad_stride + k, offset(in, at),
                                                 offset(bits, t.row * g.mask_stride + k / 8), means.data() + k,
                                                 scales.data() + k, slopes.data() + k, shifts.data() + k, dx + at,
                                                 offset(dr, at), t.rows, t.channels, c, grad_stride, g.mask_stride});
      });
    }
  }
  const bool has_weight = weight.has_value() && weight->defined();
  const auto param = has_weight ? weight->scalar_type() : input.scalar_type();
  for (int64_t i = 0; i < c; ++i) sums.product[i] *= inverse[i];
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
  const auto run = input.scalar_type() == at::kDouble ? &forward<double> : &forward<float>;
  return run(g, input, mean, var, weight, bias, residual, eps, relu, with_mask);
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
  const auto run = input.scalar_type() == at::kDouble ? &backward<double> : &backward<float>;
  return run(g, kTraining, grad_output, input, mean, var, weight, mask, eps, output_mask);
}

}  // namespace
}  // namespace fastcnn::cpu

TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
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
