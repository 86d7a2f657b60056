// The passes of batch norm: one reduces, a second one applies, in reverse order: it finds its tiles in cache.

#include <algorithm>
#include <cmath>

#include "../common/backends.h"
#include "../common/layout.h"
#include "batch_norm.h"
#include "capability.h"
#include "dtypes.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

// Measured on two EPYC 9004 cores with 1 MB of L2 each. A tile is one thread's unit of work; a block is what a
// reduction sums in the compute type before double takes over.
constexpr int64_t kTileBytes = 128 * 1024;
constexpr int64_t kMinTileRows = 64;  // fewer, and the tiles' sums in double are a load of their own
constexpr int64_t kBlockRows = 128;
constexpr int64_t kGrainTiles = 2;  // a thread's least work
// A result of this size goes around the caches: they would not hold it until it is read.
constexpr int64_t kStreamedBytes = 8 * 1024 * 1024;

struct Tile {
  int64_t index;  // among the tiles of rows
  int64_t row, rows, channel, channels;
};

// The grid of tiles over rows x channels.
class Tiles {
 public:
  Tiles(const BatchNormGeometry& g, int64_t element_size) : g_(g) {
    tile_channels_ = std::max<int64_t>(1, std::min(kMaxBatchNormTileChannels, g.channels));
    tile_rows_ = std::max(kMinTileRows, kTileBytes / (tile_channels_ * element_size));
    along_rows_ = ceil_div(g.rows, tile_rows_);
    along_channels_ = ceil_div(g.channels, tile_channels_);
  }

  int64_t along_rows() const { return along_rows_; }
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
  int64_t tile_rows_, tile_channels_, along_rows_, along_channels_;
};

template <typename T>
T* at_tile(const Rows<T>& rows, const Tile& t) {
  return rows.data != nullptr ? rows.data + t.row * rows.stride + t.channel : nullptr;
}
template <typename Byte>
Byte* mask_at(Byte* mask, const Tile& t, const BatchNormGeometry& g) {
  return mask != nullptr ? mask + t.row * g.mask_stride + t.channel / 8 : nullptr;
}
// The values in the type that T is computed in.
template <typename T>
std::vector<Compute<T>> narrowed(const std::vector<double>& values, int64_t channels) {
  return {values.begin(), values.begin() + channels};
}

// Whether a result without gaps, or none, is large and its rows are whole cache lines.
template <typename T>
bool is_streamed(const BatchNormGeometry& g, Rows<T> result) {
  constexpr int64_t kLine = 64;
  const int64_t row_bytes = g.channels * static_cast<int64_t>(sizeof(T));
  return result.data == nullptr || (result.stride == g.channels && g.rows * row_bytes >= kStreamedBytes &&
                                    row_bytes % kLine == 0 && reinterpret_cast<uintptr_t>(result.data) % kLine == 0);
}

}  // namespace

std::vector<double> channel_values(const OptionalTensor& t, int64_t channels, double missing) {
  std::vector<double> values(channels, missing);
  if (!t.has_value() || !t->defined()) return values;
  if (t->scalar_type() == at::kFloat) {  // the common case, without tensors in between
    const float* p = t->const_data_ptr<float>();
    for (int64_t i = 0; i < channels; ++i) values[i] = p[i * t->stride(0)];
    return values;
  }
  const at::Tensor wide = t->to(at::kDouble).contiguous();
  std::copy_n(wide.const_data_ptr<double>(), channels, values.begin());
  return values;
}

at::Tensor channel_tensor(const std::vector<double>& values, const at::Tensor& like, at::ScalarType dtype) {
  const auto direct = dtype == at::kFloat ? at::kFloat : at::kDouble;
  at::Tensor t = empty({static_cast<int64_t>(values.size())},
                       like.options().dtype(direct).memory_format(at::MemoryFormat::Contiguous));
  if (dtype == at::kFloat) {
    std::copy(values.begin(), values.end(), t.mutable_data_ptr<float>());
    return t;
  }
  std::copy(values.begin(), values.end(), t.mutable_data_ptr<double>());
  return t.to(dtype);
}

at::Tensor rows_of(const at::Tensor& t, at::ScalarType dtype) { return layout::rows_of<empty>(t, dtype); }

template <typename T>
Rows<const T> const_rows(const at::Tensor& rows) {
  return {data_of<T>(rows), layout::row_stride(rows).value()};
}

template <typename T>
Moments batch_norm_moments(const BatchNormGeometry& g, Rows<const T> input) {
  backends::record_kernel("batch_norm_stats");
  // 1. Each tile's sums, and squared distances from the tile's mean.
  const int64_t c = g.channels;
  const Tiles tiles(g, sizeof(T));
  std::vector<double> sums(tiles.along_rows() * c), squares(tiles.along_rows() * c);
  tiles.run(/*reversed=*/false, [&](const Tile& t) {
    const int64_t at = t.index * c + t.channel;
    kernels().of<T>().batch_norm_stats(
        {at_tile(input, t), t.rows, t.channels, input.stride, kBlockRows, sums.data() + at, squares.data() + at});
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
void batch_norm_apply(const BatchNormGeometry& g, Rows<const T> input, const Moments& m, const OptionalTensor& weight,
                      const OptionalTensor& bias, Rows<const T> residual, double eps, bool relu, Rows<T> output,
                      uint8_t* mask) {
  backends::record_kernel("batch_norm_apply");
  // The mean's part that the compute type does not hold goes into the shift: it matters where mean >> standard
  // deviation.
  const int64_t c = g.channels;
  std::vector<double> scale = batch_norm_scale(m, weight, eps, c), shift = channel_values(bias, c, 0);
  const std::vector<Compute<T>> mean = narrowed<T>(m.mean, c);
  for (int64_t i = 0; i < c; ++i) shift[i] -= (m.mean[i] - static_cast<double>(mean[i])) * scale[i];
  const std::vector<Compute<T>> scales = narrowed<T>(scale, c), shifts = narrowed<T>(shift, c);
  const bool streamed = is_streamed(g, output);
  Tiles(g, sizeof(T)).run(/*reversed=*/true, [&](const Tile& t) {
    kernels().of<T>().batch_norm_apply({at_tile(input, t), at_tile(residual, t), mean.data() + t.channel,
                                        scales.data() + t.channel, shifts.data() + t.channel, at_tile(output, t),
                                        mask_at(mask, t, g), t.rows, t.channels, input.stride, residual.stride,
                                        output.stride, g.mask_stride, relu, streamed});
  });
}

template <typename T>
GradSums batch_norm_grad_sums(const BatchNormGeometry& g, Rows<const T> grad_output, Rows<const T> input,
                              const std::vector<double>& mean, const uint8_t* mask,
                              const std::optional<GradSumsResult<T>>& result) {
  backends::record_kernel("batch_norm_grad_sums");
  const int64_t c = g.channels;
  const Tiles tiles(g, sizeof(T));
  const std::vector<Compute<T>> means = narrowed<T>(mean, c), scales = result ? narrowed<T>(result->scale, c) : means;
  const Rows<const T> addend = result ? result->addend : Rows<const T>{};
  const Rows<T> out = result ? result->result : Rows<T>{};
  std::vector<double> sums(tiles.along_rows() * c), products(tiles.along_rows() * c);
  tiles.run(/*reversed=*/false, [&](const Tile& t) {
    const int64_t part = t.index * c + t.channel;
    kernels().of<T>().batch_norm_grad_sums(
        {at_tile(grad_output, t), at_tile(input, t), mask_at(mask, t, g), means.data() + t.channel, t.rows, t.channels,
         input.stride, grad_output.stride, g.mask_stride, kBlockRows, sums.data() + part, products.data() + part,
         scales.data() + t.channel, at_tile(addend, t), at_tile(out, t), addend.stride, out.stride});
  });
  GradSums total{std::vector<double>(c, 0), std::vector<double>(c, 0)};
  for (int64_t index = 0; index < tiles.along_rows(); ++index)
    for (int64_t i = 0; i < c; ++i) {
      total.grad[i] += sums[index * c + i];
      total.product[i] += products[index * c + i];
    }
  return total;
}

std::vector<double> batch_norm_scale(const Moments& m, const OptionalTensor& weight, double eps, int64_t channels) {
  std::vector<double> scale = channel_values(weight, channels, 1);
  for (int64_t i = 0; i < channels; ++i) scale[i] /= std::sqrt(m.var[i] + eps);
  return scale;
}

GradFactors batch_norm_grad_factors(const BatchNormGeometry& g, const Moments& m, std::vector<double> scale,
                                    const GradSums& sums, double eps) {
  GradFactors f{std::move(scale), std::vector<double>(g.channels), std::vector<double>(g.channels)};
  for (int64_t i = 0; i < g.channels; ++i) {
    f.slope[i] = -f.scale[i] / (m.var[i] + eps) * sums.product[i] / static_cast<double>(g.rows);
    f.offset[i] = -f.scale[i] * sums.grad[i] / static_cast<double>(g.rows);
  }
  return f;
}

template <typename T>
void batch_norm_grad_input(const BatchNormGeometry& g, Rows<const T> grad_output, Rows<const T> input,
                           const std::vector<double>& mean, const uint8_t* mask, const GradFactors& factors,
                           Rows<T> grad_input, T* grad_residual) {
  backends::record_kernel("batch_norm_grad_input");
  const int64_t c = g.channels;
  const std::vector<Compute<T>> means = narrowed<T>(mean, c), scales = narrowed<T>(factors.scale, c),
                                slopes = narrowed<T>(factors.slope, c), offsets = narrowed<T>(factors.offset, c);
  const Rows<T> residual{grad_residual, grad_input.stride};
  const bool streamed = is_streamed(g, grad_input) && is_streamed(g, residual);
  Tiles(g, sizeof(T)).run(/*reversed=*/true, [&](const Tile& t) {
    const int64_t k = t.channel;
    kernels().of<T>().batch_norm_grad_input(
        {at_tile(grad_output, t), at_tile(input, t), mask_at(mask, t, g), means.data() + k, scales.data() + k,
         slopes.data() + k, offsets.data() + k, at_tile(grad_input, t), at_tile(residual, t), t.rows, t.channels,
         input.stride, grad_output.stride, grad_input.stride, g.mask_stride, streamed});
  });
}

#define FASTCNN_INSTANTIATE(T)                                                                                      \
  template Rows<const T> const_rows<T>(const at::Tensor&);                                                          \
  template Moments batch_norm_moments<T>(const BatchNormGeometry&, Rows<const T>);                                  \
  template void batch_norm_apply<T>(const BatchNormGeometry&, Rows<const T>, const Moments&, const OptionalTensor&, \
                                    const OptionalTensor&, Rows<const T>, double, bool, Rows<T>, uint8_t*);         \
  template GradSums batch_norm_grad_sums<T>(const BatchNormGeometry&, Rows<const T>, Rows<const T>,                 \
                                            const std::vector<double>&, const uint8_t*,                             \
                                            const std::optional<GradSumsResult<T>>&);                               \
  template void batch_norm_grad_input<T>(const BatchNormGeometry&, Rows<const T>, Rows<const T>,                    \
                                         const std::vector<double>&, const uint8_t*, const GradFactors&, Rows<T>, T*);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
