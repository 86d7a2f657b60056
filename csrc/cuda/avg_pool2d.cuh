// Average pooling on the GPU, regular and adaptive. A thread takes 16 bytes of neighbouring channels of one pixel. A
// window's rows are summed first and then each other, which keeps the chains of additions short.
#pragma once
#include "avg_pool2d_launch.h"
#include "pool2d.cuh"

namespace fastcnn::cuda {

// A window of average pooling and its share in the divisor, which is the product over both axes.
struct AvgWindow {
  int64_t begin, count, divisor;
};
__device__ inline AvgWindow avg_window(const PoolAxis& a, int64_t i, bool count_include_pad) {
  if (a.kernel == 0) {
    const int64_t begin = i * a.in / a.out, count = ((i + 1) * a.in + a.out - 1) / a.out - begin;
    return {begin, count, count};
  }
  const PoolWindow w = regular_window(a, i);
  const int64_t padded = a.in + a.pad - (i * a.stride - a.pad);
  return {w.begin, w.count, !count_include_pad ? w.count : padded < a.kernel ? padded : a.kernel};
}

// The windows that lie over a position.
__device__ inline PoolSpan avg_windows_over(const PoolAxis& a, int64_t position) {
  if (a.kernel != 0) return windows_over(a, position);
  return {position * a.out / a.in, ((position + 1) * a.out + a.in - 1) / a.in - 1};
}

template <typename C>
__device__ inline C divisor_of(const AvgPool2dArgs& args, const AvgWindow& rows, const AvgWindow& cols) {
  return static_cast<C>(args.divisor != 0 ? args.divisor : rows.divisor * cols.divisor);
}

// A thread a unit of the output. `aligned`: every pixel of both images starts at a multiple of 16 bytes.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    avg_pool2d_kernel(const AvgPool2dArgs args, const Tiling tiling, const bool aligned) {
  constexpr int kLanes = kVector<T>;
  const Pool2dGeometry& g = args.geometry;
  const PoolPlace at = pool_place<T>(tiling, g.out_h, g.channels);
  if (!at.inside) return;
  const AvgWindow rows = avg_window(row_axis(g), at.h, args.count_include_pad);
  const AvgWindow cols = avg_window(col_axis(g), at.w, args.count_include_pad);
  const T* image = static_cast<const T*>(args.source) + at.n * g.in_h * g.in_w * g.channels + at.channel;
  Compute<T> sum[kLanes] = {};
  for (int64_t kh = 0; kh < rows.count; ++kh) {
    const T* from = image + ((rows.begin + kh) * g.in_w + cols.begin) * g.channels;
    Compute<T> row_sum[kLanes] = {};
    for (int64_t kw = 0; kw < cols.count; ++kw, from += g.channels) {
      Compute<T> x[kLanes];
      load_lanes(from, at.channels, aligned, x);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) row_sum[i] += x[i];
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sum[i] += row_sum[i];
  }
  const auto divisor = divisor_of<Compute<T>>(args, rows, cols);
#pragma unroll
  for (int i = 0; i < kLanes; ++i) sum[i] /= divisor;
  const int64_t result = ((at.n * g.out_h + at.h) * g.out_w + at.w) * g.channels + at.channel;
  store_lanes(static_cast<T*>(args.result) + result, sum, at.channels, aligned);
}

// A thread a unit of the input's gradient, which gathers from the windows over it.
// One block an SM is asked for at least: without that, ptxas spills for 12.0 rather than take more than 64 registers.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 1)
    avg_pool2d_backward_kernel(const AvgPool2dArgs args, const Tiling tiling, const bool aligned) {
  constexpr int kLanes = kVector<T>;
  const Pool2dGeometry& g = args.geometry;
  const PoolPlace at = pool_place<T>(tiling, g.in_h, g.channels);
  if (!at.inside) return;
  const PoolSpan rows = avg_windows_over(row_axis(g), at.h), cols = avg_windows_over(col_axis(g), at.w);
  const T* grad_output = static_cast<const T*>(args.source) + at.channel;
  Compute<T> sum[kLanes] = {};
  for (int64_t oh = rows.first; oh <= rows.last; ++oh) {
    const AvgWindow row = avg_window(row_axis(g), oh, args.count_include_pad);
    for (int64_t ow = cols.first; ow <= cols.last; ++ow) {
      const AvgWindow col = avg_window(col_axis(g), ow, args.count_include_pad);
      const auto scale = 1 / divisor_of<Compute<T>>(args, row, col);
      Compute<T> grad[kLanes];
      load_lanes(grad_output + ((at.n * g.out_h + oh) * g.out_w + ow) * g.channels, at.channels, aligned, grad);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) sum[i] += grad[i] * scale;
    }
  }
  const int64_t result = ((at.n * g.in_h + at.h) * g.in_w + at.w) * g.channels + at.channel;
  store_lanes(static_cast<T*>(args.result) + result, sum, at.channels, aligned);
}

constexpr int kGlobalThreadsX = 8;    // units of 16 bytes: a line of 128
constexpr int64_t kChainPixels = 64;  // summed before their sum is added to the others

// A block some channels of one image (a tile of `tiling`), its threads in y the pixels.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    global_avg_pool2d_kernel(const GlobalAvgPool2dArgs args, const Tiling tiling, const bool aligned) {
  constexpr int kLanes = kVector<T>;
  __shared__ Compute<T> shared[kLanes * kBlockThreads];
  const Place at = place_in(tiling);
  const int64_t channel = at.unit * kLanes, channels = args.channels - channel;
  const T* image = static_cast<const T*>(args.input) + at.tile * args.pixels * args.channels + channel;
  Compute<T> sum[kLanes] = {};
  for (int64_t pixel = threadIdx.y; pixel < args.pixels;) {
    Compute<T> chain[kLanes] = {};
    const int64_t chain_end = pixel + kChainPixels * blockDim.y;
    for (; pixel < args.pixels && pixel < chain_end; pixel += blockDim.y) {
      Compute<T> x[kLanes];
      load_lanes(image + pixel * args.channels, channels, aligned, x);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) chain[i] += x[i];
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sum[i] += chain[i];
  }
  sum_over_y(sum, shared);
  if (threadIdx.y != 0) return;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) sum[i] /= static_cast<Compute<T>>(args.pixels);
  store_lanes(static_cast<T*>(args.output) + at.tile * args.channels + channel, sum, channels, aligned);
}

}  // namespace fastcnn::cuda
