// What the pooling kernels share: windows along one axis, the windows over a position, and a thread's place.
#pragma once
#include "lanes.cuh"

namespace fastcnn::cuda {

// One axis of a Pool2dGeometry; kernel is 0 where the windows are adaptive.
struct PoolAxis {
  int64_t in, out, kernel, stride, pad, dilation;
};
__device__ inline PoolAxis row_axis(const Pool2dGeometry& g) {
  return {g.in_h, g.out_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h};
}
__device__ inline PoolAxis col_axis(const Pool2dGeometry& g) {
  return {g.in_w, g.out_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w};
}

__device__ inline int64_t divide_up(int64_t a, int64_t b) { return b == 1 ? a : (a + b - 1) / b; }

// One window, cut to the image: its taps lie at begin, begin + dilation, ..., `count` of them, none where it is
// negative (dilation and ceil_mode leave such windows), and the first one is tap `tap` of the whole window.
struct PoolWindow {
  int64_t begin, count, tap;
};
__device__ inline PoolWindow regular_window(const PoolAxis& a, int64_t i) {
  const int64_t start = i * a.stride - a.pad;
  const int64_t tap = start < 0 ? divide_up(-start, a.dilation) : 0;
  const int64_t begin = start + tap * a.dilation;
  const int64_t inside = divide_up(a.in - begin, a.dilation), taps = a.kernel - tap;
  return {begin, taps < inside ? taps : inside, tap};
}

// The windows first to last are those that may lie over a position.
struct PoolSpan {
  int64_t first, last;
};
__device__ inline PoolSpan windows_over(const PoolAxis& a, int64_t position) {
  const int64_t p = position + a.pad, before = p - (a.kernel - 1) * a.dilation;
  const int64_t last = p / a.stride;
  return {before > 0 ? divide_up(before, a.stride) : 0, last < a.out ? last : a.out - 1};
}

// A thread's channels of one pixel.
struct PoolPlace {
  bool inside;
  int64_t n, h, w;
  int64_t channel, channels;  // the first, and how many from there to the last
};
template <typename T>
__device__ inline PoolPlace pool_place(const Tiling& t, int64_t rows_an_image, int64_t channels) {
  const int64_t units = divide_up(channels, kVector<T>);
  const Place place = place_in(t);
  const int64_t row = place.row_begin + threadIdx.y;
  const int64_t n = row / rows_an_image, w = place.unit / units, channel = (place.unit - w * units) * kVector<T>;
  return {row < place.row_end && place.unit < t.units, n, row - n * rows_an_image, w, channel, channels - channel};
}

}  // namespace fastcnn::cuda
