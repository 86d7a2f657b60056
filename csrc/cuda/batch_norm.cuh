// Batch norm on the GPU (Ioffe and Szegedy 2015). A thread takes kUnit neighbouring channels, a byte of the mask, of
// several rows. Reductions over the rows go in two passes, tiles and then the tiles' sums in double, so that their bits
// are the same in every run.
#pragma once
#include <cmath>

#include "batch_norm_launch.h"
#include "bit_mask.cuh"

namespace fastcnn::cuda {

constexpr int kMaxThreadsX = 32;     // units: threads enough are left for the rows
constexpr int kReduceThreadsX = 8;   // channels whose tiles' sums a block adds up: 64 bytes of double
constexpr int64_t kApplyRows = 8;    // a thread's rows, which share what belongs to their channels
constexpr int64_t kReduceRows = 16;  // at least: fewer, and the block's own sums are as much work

template <typename C>
__device__ inline C value_of(const ChannelValues& values, int64_t channel, C missing) {
  if (values.data == nullptr) return missing;
  const int64_t i = channel * values.stride;
  switch (values.dtype) {
    case Dtype::f64:
      return static_cast<C>(static_cast<const double*>(values.data)[i]);
    case Dtype::f16:
      return to_compute(static_cast<const __half*>(values.data)[i]);
    case Dtype::bf16:
      return to_compute(static_cast<const __nv_bfloat16*>(values.data)[i]);
    default:
      return static_cast<const float*>(values.data)[i];
  }
}

template <typename C>
__device__ inline void set_value(const ChannelResult& values, int64_t channel, C value) {
  const int64_t i = channel * values.stride;
  switch (values.dtype) {
    case Dtype::f64:
      static_cast<double*>(values.data)[i] = value;
      break;
    case Dtype::f16:
      static_cast<__half*>(values.data)[i] = from_compute<__half>(static_cast<float>(value));
      break;
    case Dtype::bf16:
      static_cast<__nv_bfloat16*>(values.data)[i] = from_compute<__nv_bfloat16>(static_cast<float>(value));
      break;
    default:
      static_cast<float*>(values.data)[i] = static_cast<float>(value);
  }
}

// Each tile's sums and squared distances from the tile's mean. A thread adds up its rows by Youngs and Cramer's
// updates (1971), of differences from the tile's first row: a mean far from zero does not cancel, and if that row lies
// far from the others, it is part of what is measured. The threads are merged as Chan, Golub and LeVeque (1979) do.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    batch_norm_stats_kernel(const BatchNormMomentsArgs args, const Tiling tiling, const bool aligned) {
  using C = Compute<T>;
  __shared__ C shared[kUnit * kBlockThreads];
  const Place at = place_in(tiling);
  const int64_t channel = at.unit * kUnit, channels = args.geometry.channels - channel;
  const T* input = static_cast<const T*>(args.input) + channel;
  C shift[kUnit], sum[kUnit] = {}, square[kUnit] = {};
  load_lanes(input + at.row_begin * args.stride, channels, aligned, shift);
  // A shift by what is not finite would make NaN of every difference, and lose the infinity.
#pragma unroll
  for (int i = 0; i < kUnit; ++i) shift[i] = shift[i] - shift[i] == 0 ? shift[i] : C(0);

  // 1. The thread's rows.
  C count = 0;
  for (int64_t row = at.row_begin + threadIdx.y; row < at.row_end; row += blockDim.y) {
    count += 1;
    const C weight = count > 1 ? 1 / (count * (count - 1)) : C(0);
    C x[kUnit];
    load_lanes(input + row * args.stride, channels, aligned, x);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      const C d = x[i] - shift[i];
      sum[i] += d;
      const C distance = count * d - sum[i];
      square[i] += distance * distance * weight;
    }
  }
  // 2. The block's: the squares get the threads' distances from the tile's mean.
  const C inverse = count > 0 ? 1 / count : C(0), rows = static_cast<C>(at.row_end - at.row_begin);
  C total[kUnit];
#pragma unroll
  for (int i = 0; i < kUnit; ++i) total[i] = sum[i];
  sum_over_y(total, shared);
#pragma unroll
  for (int i = 0; i < kUnit; ++i) {
    const C distance = sum[i] * inverse - total[i] / rows;
    square[i] += count * distance * distance;
  }
  sum_over_y(square, shared);
  if (threadIdx.y != 0) return;
  double* sums = args.partial + at.tile * args.geometry.channels + channel;
  double* squares = sums + tiling.tiles_y * args.geometry.channels;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) {
    if (i >= channels) continue;
    sums[i] = static_cast<double>(shift[i]) * static_cast<double>(rows) + static_cast<double>(total[i]);
    squares[i] = square[i];
  }
}

// The sum over the tiles of one channel, in all threads of its threadIdx.x. All threads of the block come here.
__device__ inline double sum_tiles(const double* partial, int64_t tiles, int64_t channels, double* shared) {
  double sum[1] = {0};
  if (partial != nullptr)
    for (int64_t tile = threadIdx.y; tile < tiles; tile += blockDim.y) sum[0] += partial[tile * channels];
  sum_over_y(sum, shared);
  return sum[0];
}

// Merges the tiles (Chan, Golub and LeVeque 1979). `rows` is the tiling of the rows, `tiling` that of the channels.
template <typename C>
__global__ void __launch_bounds__(kBlockThreads)
    batch_norm_moments_kernel(const BatchNormMomentsArgs args, const Tiling rows, const Tiling tiling) {
  __shared__ double shared[kBlockThreads];
  const int64_t channel = place_in(tiling).unit, channels = args.geometry.channels;
  const bool inside = channel < channels;
  const double* sums = inside ? args.partial + channel : nullptr;
  const double n = static_cast<double>(rows.rows), mean = sum_tiles(sums, rows.tiles_y, channels, shared) / n;
  const double* squares = inside ? sums + rows.tiles_y * channels : nullptr;

  double square[1] = {0};
  const double whole = static_cast<double>(rows.tile_rows);
  const double last = static_cast<double>(rows.rows - (rows.tiles_y - 1) * rows.tile_rows);
  const double inverse_whole = 1 / whole, inverse_last = 1 / last;
  if (inside)
    for (int64_t tile = threadIdx.y; tile < rows.tiles_y; tile += blockDim.y) {
      const bool is_last = tile + 1 == rows.tiles_y;
      const double distance = sums[tile * channels] * (is_last ? inverse_last : inverse_whole) - mean;
      square[0] += squares[tile * channels] + (is_last ? last : whole) * distance * distance;
    }
  sum_over_y(square, shared);
  if (threadIdx.y != 0 || !inside) return;
  const C rounded = static_cast<C>(mean);
  static_cast<C*>(args.mean)[channel] = rounded;
  static_cast<C*>(args.mean_rest)[channel] = static_cast<C>(mean - static_cast<double>(rounded));
  static_cast<C*>(args.var)[channel] = static_cast<C>(square[0] / n);
}

template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    batch_norm_apply_kernel(const BatchNormApplyArgs args, const Tiling tiling, const bool aligned) {
  using C = Compute<T>;
  constexpr int kMaxChannels = kUnit * kMaxThreadsX;
  __shared__ C means[kMaxChannels], scales[kMaxChannels], shifts[kMaxChannels];
  const Place at = place_in(tiling);
  const int64_t channel = at.unit * kUnit, channels = args.geometry.channels - channel;

  // 1. What belongs to the block's channels, a thread each.
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  if (thread < static_cast<int>(blockDim.x) * kUnit) {
    const int64_t own = (at.unit - threadIdx.x) * kUnit + thread;
    const bool inside = own < args.geometry.channels;
    const C mean = inside ? value_of<C>(args.mean, own, 0) : C(0);
    const C var = inside ? value_of<C>(args.var, own, 0) : C(0);
    const C scale = inside ? value_of<C>(args.weight, own, 1) / sqrt(var + static_cast<C>(args.eps)) : C(0);
    const C rest = inside ? value_of<C>(args.mean_rest, own, 0) : C(0);
    means[thread] = mean;
    scales[thread] = scale;
    shifts[thread] = (inside ? value_of<C>(args.bias, own, 0) : C(0)) - rest * scale;
  }
  __syncthreads();
  if (channels <= 0) return;
  C mean[kUnit], scale[kUnit], shift[kUnit];
#pragma unroll
  for (int i = 0; i < kUnit; ++i) {
    const int own = static_cast<int>(threadIdx.x) * kUnit + i;
    mean[i] = means[own], scale[i] = scales[own], shift[i] = shifts[own];
  }

  // 2. The thread's rows.
  for (int64_t row = at.row_begin + threadIdx.y; row < at.row_end; row += blockDim.y) {
    C y[kUnit];
    load_lanes(static_cast<const T*>(args.input) + row * args.input_stride + channel, channels, aligned, y);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) y[i] = (y[i] - mean[i]) * scale[i] + shift[i];
    if (args.residual != nullptr) {
      C added[kUnit];
      load_lanes(static_cast<const T*>(args.residual) + row * args.residual_stride + channel, channels, aligned, added);
#pragma unroll
      for (int i = 0; i < kUnit; ++i) y[i] += added[i];
    }
    if (args.relu) {
#pragma unroll
      for (int i = 0; i < kUnit; ++i) y[i] = y[i] <= 0 ? C(0) : y[i];  // NaN stays
    }
    store_lanes(static_cast<T*>(args.output) + row * args.geometry.channels + channel, y, channels, aligned);
    if (args.mask != nullptr) args.mask[row * args.geometry.mask_stride + at.unit] = passing_bits(y);
  }
}

// Zero where the mask's byte for these channels keeps the gradient.
template <typename C>
__device__ inline void pass_gradient(const uint8_t* mask, int64_t at, C (&grad)[kUnit]) {
  if (mask == nullptr) return;
  const unsigned bits = mask[at];
#pragma unroll
  for (int i = 0; i < kUnit; ++i) grad[i] = bits >> i & 1 ? grad[i] : C(0);
}

template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    batch_norm_grad_sums_kernel(const BatchNormGradSumsArgs args, const Tiling tiling, const bool aligned) {
  using C = Compute<T>;
  __shared__ C shared[kUnit * kBlockThreads];
  const Place at = place_in(tiling);
  const int64_t channel = at.unit * kUnit, channels = args.geometry.channels - channel;
  C mean[kUnit], sum[kUnit] = {}, product[kUnit] = {};
#pragma unroll
  for (int i = 0; i < kUnit; ++i) mean[i] = i < channels ? value_of<C>(args.mean, channel + i, 0) : C(0);
  if (channels > 0)
    for (int64_t row = at.row_begin + threadIdx.y; row < at.row_end; row += blockDim.y) {
      C grad[kUnit], x[kUnit];
      load_lanes(static_cast<const T*>(args.grad_output) + row * args.grad_stride + channel, channels, aligned, grad);
      load_lanes(static_cast<const T*>(args.input) + row * args.input_stride + channel, channels, aligned, x);
      pass_gradient(args.mask, row * args.geometry.mask_stride + at.unit, grad);
#pragma unroll
      for (int i = 0; i < kUnit; ++i) {
        sum[i] += grad[i];
        product[i] += grad[i] * (x[i] - mean[i]);
      }
    }
  sum_over_y(sum, shared);
  sum_over_y(product, shared);
  if (threadIdx.y != 0) return;
  double* sums = args.partial + at.tile * args.geometry.channels + channel;
  double* products = sums + tiling.tiles_y * args.geometry.channels;
#pragma unroll
  for (int i = 0; i < kUnit; ++i)
    if (i < channels) sums[i] = sum[i], products[i] = product[i];
}

template <typename C>
__global__ void __launch_bounds__(kBlockThreads)
    batch_norm_grad_factors_kernel(const BatchNormGradFactorsArgs args, const int64_t tiles, const Tiling tiling) {
  __shared__ double shared[kBlockThreads];
  const int64_t channel = place_in(tiling).unit, channels = args.geometry.channels;
  const bool inside = channel < channels;
  const double* sums = inside && args.partial != nullptr ? args.partial + channel : nullptr;
  const double sum = sum_tiles(sums, tiles, channels, shared);
  const double product = sum_tiles(sums == nullptr ? nullptr : sums + tiles * channels, tiles, channels, shared);
  if (threadIdx.y != 0 || !inside) return;
  const double spread = value_of<double>(args.var, channel, 0) + args.eps, inverse = 1 / sqrt(spread);
  if (args.grad_weight.data != nullptr) set_value(args.grad_weight, channel, product * inverse);
  if (args.grad_bias.data != nullptr) set_value(args.grad_bias, channel, sum);
  if (args.factors == nullptr) return;
  const double scale = value_of<double>(args.weight, channel, 1) * inverse;
  const double rows = static_cast<double>(args.geometry.rows);
  C* factors = static_cast<C*>(args.factors) + channel;
  factors[0] = value_of<C>(args.mean, channel, 0);
  factors[channels] = static_cast<C>(scale);
  factors[2 * channels] = static_cast<C>(-scale / spread * product / rows);
  factors[3 * channels] = static_cast<C>(-scale * sum / rows);
}

template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    batch_norm_grad_input_kernel(const BatchNormGradInputArgs args, const Tiling tiling, const bool aligned) {
  using C = Compute<T>;
  const Place at = place_in(tiling);
  const int64_t all = args.geometry.channels, channel = at.unit * kUnit, channels = all - channel;
  if (channels <= 0) return;
  const C* factors = static_cast<const C*>(args.factors) + channel;
  C mean[kUnit], scale[kUnit], slope[kUnit], offset[kUnit];
  load_lanes(factors, channels, aligned, mean);
  load_lanes(factors + all, channels, aligned, scale);
  load_lanes(factors + 2 * all, channels, aligned, slope);
  load_lanes(factors + 3 * all, channels, aligned, offset);
  for (int64_t row = at.row_begin + threadIdx.y; row < at.row_end; row += blockDim.y) {
    C grad[kUnit];
    load_lanes(static_cast<const T*>(args.grad_output) + row * args.grad_stride + channel, channels, aligned, grad);
    pass_gradient(args.mask, row * args.geometry.mask_stride + at.unit, grad);
    if (args.grad_residual != nullptr)
      store_lanes(static_cast<T*>(args.grad_residual) + row * all + channel, grad, channels, aligned);
    if (args.grad_input == nullptr) continue;
#pragma unroll
    for (int i = 0; i < kUnit; ++i) grad[i] *= scale[i];
    if (args.input != nullptr) {
      C x[kUnit];
      load_lanes(static_cast<const T*>(args.input) + row * args.input_stride + channel, channels, aligned, x);
#pragma unroll
      for (int i = 0; i < kUnit; ++i) grad[i] += (x[i] - mean[i]) * slope[i] + offset[i];
    }
    store_lanes(static_cast<T*>(args.grad_input) + row * all + channel, grad, channels, aligned);
  }
}

// A thread a channel, first of the means, then of the variances.
template <typename C>
__global__ void __launch_bounds__(kBlockThreads) batch_norm_update_kernel(const BatchNormUpdateArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= 2 * args.channels) return;
  const bool is_mean = i < args.channels;
  const int64_t channel = is_mean ? i : i - args.channels;
  const ChannelResult& running = is_mean ? args.running_mean : args.running_var;
  const C before = value_of<C>({running.data, running.dtype, running.stride}, channel, 0);
  const C batch = value_of<C>(is_mean ? args.mean : args.var, channel, 0);
  const C take = static_cast<C>(is_mean ? args.take_mean : args.take_var);
  set_value(running, channel, static_cast<C>(args.keep) * before + take * batch);
}

}  // namespace fastcnn::cuda
