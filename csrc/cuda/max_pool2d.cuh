// Max pooling on the GPU. A thread takes 16 bytes of neighbouring channels of one pixel. The first maximum of a window
// wins, and a NaN over all before it; the gradient gathers, at each input pixel, from the windows over it, so that
// nothing is accumulated in memory.
#pragma once
#include <cmath>

#include "max_pool2d_launch.h"
#include "pool2d.cuh"

namespace fastcnn::cuda {

// kLanes bytes that one instruction moves.
template <int kLanes>
struct BytesOf;
template <>
struct BytesOf<2> {
  using type = uint16_t;
};
template <>
struct BytesOf<4> {
  using type = uint32_t;
};
template <>
struct BytesOf<8> {
  using type = uint64_t;
};

// The offsets of up to kLanes channels; beyond `count` none is read or written.
template <int kLanes>
__device__ inline void load_offsets(const uint8_t* from8, const int32_t* from32, int64_t at, int64_t count,
                                    bool aligned, uint32_t (&offsets)[kLanes]) {
  if (from8 != nullptr && aligned) {
    const auto bytes = *reinterpret_cast<const typename BytesOf<kLanes>::type*>(from8 + at);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) offsets[i] = static_cast<uint32_t>(bytes >> (8 * i)) & 255;
    return;
  }
#pragma unroll
  for (int i = 0; i < kLanes; ++i)
    offsets[i] = i >= count ? 0 : from8 != nullptr ? from8[at + i] : static_cast<uint32_t>(from32[at + i]);
}

template <int kLanes>
__device__ inline void store_offsets(uint8_t* to8, int32_t* to32, int64_t at, int64_t count, bool aligned,
                                     const uint32_t (&offsets)[kLanes]) {
  if (to8 != nullptr && aligned) {
    using Bytes = typename BytesOf<kLanes>::type;
    Bytes bytes = 0;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) bytes = static_cast<Bytes>(bytes | static_cast<Bytes>(offsets[i]) << (8 * i));
    *reinterpret_cast<Bytes*>(to8 + at) = bytes;
    return;
  }
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    if (i >= count) continue;
    if (to8 != nullptr) to8[at + i] = static_cast<uint8_t>(offsets[i]);
    if (to32 != nullptr) to32[at + i] = static_cast<int32_t>(offsets[i]);
  }
}

// A thread a unit of the output. `aligned`: every pixel of every tensor starts at a multiple of its vectors' size.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    max_pool2d_kernel(const MaxPool2dArgs args, const Tiling tiling, const bool aligned) {
  constexpr int kLanes = kVector<T>;
  const Pool2dGeometry& g = args.geometry;
  const PoolPlace at = pool_place<T>(tiling, g.out_h, g.channels);
  if (!at.inside) return;
  const PoolWindow rows = regular_window(row_axis(g), at.h), cols = regular_window(col_axis(g), at.w);
  const auto first_tap = static_cast<uint32_t>(rows.tap * g.kernel_w + cols.tap);
  Compute<T> best[kLanes];
  uint32_t winner[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; ++i) best[i] = -INFINITY, winner[i] = first_tap;

  const T* image = static_cast<const T*>(args.input) + at.n * g.in_h * g.in_w * g.channels + at.channel;
  for (int64_t kh = 0; kh < rows.count; ++kh) {
    const int64_t row = (rows.begin + kh * g.dilation_h) * g.in_w;
    for (int64_t kw = 0; kw < cols.count; ++kw) {
      Compute<T> x[kLanes];
      load_lanes(image + (row + cols.begin + kw * g.dilation_w) * g.channels, at.channels, aligned, x);
      const uint32_t tap = first_tap + static_cast<uint32_t>(kh * g.kernel_w + kw);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        const bool wins = x[i] > best[i] || x[i] != x[i];
        best[i] = wins ? x[i] : best[i];
        winner[i] = wins ? tap : winner[i];
      }
    }
  }
  const int64_t result = ((at.n * g.out_h + at.h) * g.out_w + at.w) * g.channels + at.channel;
  store_lanes(static_cast<T*>(args.output) + result, best, at.channels, aligned);
  if (args.offsets8 != nullptr || args.offsets32 != nullptr)
    store_offsets(args.offsets8, args.offsets32, result, at.channels, aligned, winner);
}

// A thread a unit of the input's gradient.
// One block an SM is asked for at least: without that, ptxas spills for 12.0 rather than take more than 64 registers.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 1)
    max_pool2d_backward_kernel(const MaxPool2dBackwardArgs args, const Tiling tiling, const bool aligned) {
  constexpr int kLanes = kVector<T>;
  const Pool2dGeometry& g = args.geometry;
  const PoolPlace at = pool_place<T>(tiling, g.in_h, g.channels);
  if (!at.inside) return;
  const PoolSpan rows = windows_over(row_axis(g), at.h), cols = windows_over(col_axis(g), at.w);
  const T* grad_output = static_cast<const T*>(args.grad_output);
  Compute<T> sum[kLanes] = {};
  for (int64_t oh = rows.first; oh <= rows.last; ++oh) {
    const int64_t h = at.h + g.pad_h - oh * g.stride_h, kh = g.dilation_h == 1 ? h : h / g.dilation_h;
    if (kh * g.dilation_h != h) continue;
    for (int64_t ow = cols.first; ow <= cols.last; ++ow) {
      const int64_t w = at.w + g.pad_w - ow * g.stride_w, kw = g.dilation_w == 1 ? w : w / g.dilation_w;
      if (kw * g.dilation_w != w) continue;
      const auto tap = static_cast<uint32_t>(kh * g.kernel_w + kw);
      const int64_t from = ((at.n * g.out_h + oh) * g.out_w + ow) * g.channels + at.channel;
      uint32_t winner[kLanes];
      Compute<T> grad[kLanes];
      load_offsets(args.offsets8, args.offsets32, from, at.channels, aligned, winner);
      load_lanes(grad_output + from, at.channels, aligned, grad);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) sum[i] += winner[i] == tap ? grad[i] : Compute<T>(0);
    }
  }
  const int64_t result = ((at.n * g.in_h + at.h) * g.in_w + at.w) * g.channels + at.channel;
  store_lanes(static_cast<T*>(args.grad_input) + result, sum, at.channels, aligned);
}

// Where a window's winner lies, for element i of the offsets.
struct Winner {
  int64_t n, h, w, channel;
};
__device__ inline Winner winner_of(const Pool2dGeometry& g, const uint8_t* offsets8, const int32_t* offsets32,
                                   int64_t i) {
  const auto kernel_w = static_cast<uint32_t>(g.kernel_w);
  const uint32_t offset = offsets8 != nullptr ? offsets8[i] : static_cast<uint32_t>(offsets32[i]);
  const int64_t pixel = i / g.channels, row = pixel / g.out_w, n = row / g.out_h;
  return {n, (row - n * g.out_h) * g.stride_h - g.pad_h + offset / kernel_w * g.dilation_h,
          (pixel - row * g.out_w) * g.stride_w - g.pad_w + offset % kernel_w * g.dilation_w, i - pixel * g.channels};
}

// The next two take single offsets: double backward and return_indices are rare.
static __global__ void __launch_bounds__(kBlockThreads)
    max_pool2d_indices_kernel(const MaxPool2dIndicesArgs args, const int64_t total) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const Winner at = winner_of(args.geometry, args.offsets8, args.offsets32, i);
    args.indices[i] = at.h * args.geometry.in_w + at.w;
  }
}

// Bits is an unsigned integer of the element's size: the values are only moved.
template <typename Bits>
__global__ void __launch_bounds__(kBlockThreads)
    max_pool2d_gather_kernel(const MaxPool2dGatherArgs args, const int64_t total) {
  const Pool2dGeometry& g = args.geometry;
  const Bits* values = static_cast<const Bits*>(args.values);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const Winner at = winner_of(g, args.offsets8, args.offsets32, i);
    const bool inside = at.h >= 0 && at.h < g.in_h && at.w >= 0 && at.w < g.in_w;
    static_cast<Bits*>(args.output)[i] =
        inside ? values[((at.n * g.in_h + at.h) * g.in_w + at.w) * g.channels + at.channel] : Bits{0};
  }
}

}  // namespace fastcnn::cuda
