// Depthwise convolution: a thread's lanes are the channels of one 16-byte vector, each convolved by itself.
#pragma once
#include "conv2d_window.cuh"

namespace fastcnn::cuda {

constexpr int kDepthwiseThreads = 128;
constexpr int kDepthwiseVectors = 32;  // of channels, at most, that a block takes: p.block_vectors
constexpr int kDepthwisePixels = 4;    // neighbouring positions of a thread share a tap's weights
constexpr int kDepthwiseTaps = 8;      // whose weights are in shared memory at a time
constexpr int kDepthwiseGradTaps = 4;  // whose gradients a thread sums

// The output, or the gradient of the input (one phase after the other).
template <typename T>
__global__ void __launch_bounds__(kDepthwiseThreads, 4) conv2d_depthwise_kernel(const Conv2dProblem p) {
  constexpr int kLanes = kVector<T>;
  __shared__ Compute<T> weights[kDepthwiseTaps][kDepthwiseVectors * kLanes];

  // 1. The block's channels and phase, the thread's vector and positions.
  const bool forward = p.pass == Conv2dPass::forward;
  uint32_t index = blockIdx.x;
  const int first_channel = index % p.tiles_n * p.block_vectors * kLanes;
  index /= p.tiles_n;
  const int tile = index % p.tiles_m, phase = index / p.tiles_m;
  const WindowAxis h = window_axis(p.h, p.pass, phase / p.phases_w), w = window_axis(p.w, p.pass, phase % p.phases_w);
  const int positions = p.batch * h.positions * w.positions, taps = h.taps * w.taps;
  const int lane = static_cast<int>(threadIdx.x) % p.block_vectors * kLanes, c = first_channel + lane;
  const int thread = tile * (kDepthwiseThreads / p.block_vectors) + static_cast<int>(threadIdx.x) / p.block_vectors;
  const int64_t first = static_cast<int64_t>(thread) * kDepthwisePixels;
  const int channels = p.in_channels, left = channels - c;
  const T* image = static_cast<const T*>(forward ? p.input : p.grad_output);

  Compute<T> sums[kDepthwisePixels][kLanes] = {};
  int y[kDepthwisePixels], x[kDepthwisePixels];
  int64_t before[kDepthwisePixels];  // pixels before the position's image
#pragma unroll
  for (int i = 0; i < kDepthwisePixels; ++i) {
    const bool valid = first + i < positions;
    const Pixel at = valid ? pixel_at(static_cast<uint32_t>(first + i), h, w) : Pixel{0, 0, 0};
    y[i] = valid ? at.y * h.step + h.origin : kOutside;
    x[i] = at.x * w.step + w.origin;
    before[i] = static_cast<int64_t>(at.n) * h.image * w.image;
  }

  // 2. Some taps at a time: their weights, then their products.
  TapPosition tap = {0, 0, 0};
  for (int first_tap = 0; first_tap < taps; first_tap += kDepthwiseTaps) {
    const int count = min(kDepthwiseTaps, taps - first_tap), block_channels = p.block_vectors * kLanes;
    __syncthreads();
    for (int i = threadIdx.x; i < count * block_channels; i += kDepthwiseThreads) {
      const int t = first_tap + i / block_channels, channel = first_channel + i % block_channels;
      const int kh = h.first_tap + t / w.taps * h.kernel_step, kw = w.first_tap + t % w.taps * w.kernel_step;
      const T* from = static_cast<const T*>(p.weight) + static_cast<int64_t>(channel) * p.kernel_row;
      weights[i / block_channels][i % block_channels] =
          channel < channels ? to_compute(from[kh * p.w.kernel + kw]) : Compute<T>(0);
    }
    __syncthreads();
    for (int t = 0; t < count; ++t) {
#pragma unroll
      for (int i = 0; i < kDepthwisePixels; ++i) {
        const int iy = y[i] + tap.h * h.tap_step, ix = x[i] + tap.w * w.tap_step;
        if (!is_inside(iy, h.image) || !is_inside(ix, w.image)) continue;
        const T* from = image + (before[i] + static_cast<int64_t>(iy) * w.image + ix) * channels + c;
        const Vec<T> vec = load_vector(from, left, p.in_vectors);
#pragma unroll
        for (int e = 0; e < kLanes; ++e) sums[i][e] += to_compute(vec[e]) * weights[t][lane + e];
      }
      tap.add(1, 1, w.taps);
    }
  }

  // 3. Bias, ReLU and rounding.
  const Vec<T> bias = p.bias != nullptr ? load_vector(static_cast<const T*>(p.bias) + c, left, false) : Vec<T>{};
#pragma unroll
  for (int i = 0; i < kDepthwisePixels; ++i) {
    if (first + i >= positions) break;
    Vec<T> vec;
#pragma unroll
    for (int e = 0; e < kLanes; ++e) vec[e] = from_compute<T>(finish(sums[i][e], to_compute(bias[e]), p.relu));
    const Pixel at = pixel_at(static_cast<uint32_t>(first + i), h, w);
    store_vector(static_cast<T*>(p.result) + result_offset(at, h, w, channels) + c, vec, left, p.in_vectors);
  }
}

// The weight's gradient over one part of the positions: [part, channels, kernel_h, kernel_w]. The block's threads of
// one vector each take every block_slices-th position, and their sums are added at the end.
template <typename T>
__global__ void __launch_bounds__(kDepthwiseThreads, 4) conv2d_depthwise_grad_weight_kernel(const Conv2dProblem p) {
  constexpr int kLanes = kVector<T>;
  __shared__ Compute<T> shared[kDepthwiseThreads * kLanes];

  // 1. The block's channels, taps and positions.
  uint32_t index = blockIdx.x;
  const int first_channel = index % p.tiles_n * p.block_vectors * kLanes;
  index /= p.tiles_n;
  const int first_tap = index % p.tiles_m * kDepthwiseGradTaps, part = index / p.tiles_m;
  const WindowAxis h = window_axis(p.h, Conv2dPass::grad_weight, 0), w = window_axis(p.w, Conv2dPass::grad_weight, 0);
  const int64_t positions = static_cast<int64_t>(p.batch) * h.positions * w.positions;
  const int64_t begin = part * p.part_depth, end = min(begin + p.part_depth, positions);
  const int vector = static_cast<int>(threadIdx.x) % p.block_vectors;
  const int slice = static_cast<int>(threadIdx.x) / p.block_vectors;
  const int c = first_channel + vector * kLanes, channels = p.in_channels, left = channels - c;

  // 2. Products of grad_output with the input at each tap.
  Compute<T> sums[kDepthwiseGradTaps][kLanes] = {};
  for (int64_t pixel = begin + slice; pixel < end; pixel += p.block_slices) {
    const uint32_t row = p.out_w.divide(static_cast<uint32_t>(pixel)), n = p.out_h.divide(row);
    const int y = static_cast<int>(row - n * h.positions) * h.step + h.origin;
    const int x = static_cast<int>(pixel - static_cast<int64_t>(row) * w.positions) * w.step + w.origin;
    const Vec<T> grad = load_vector(static_cast<const T*>(p.grad_output) + pixel * channels + c, left, p.in_vectors);
#pragma unroll
    for (int t = 0; t < kDepthwiseGradTaps; ++t) {
      const int tap = first_tap + t;
      const int iy = y + tap / w.taps * h.tap_step, ix = x + tap % w.taps * w.tap_step;
      if (tap >= h.taps * w.taps || !is_inside(iy, h.image) || !is_inside(ix, w.image)) continue;
      const int64_t at = (static_cast<int64_t>(n) * h.image + iy) * w.image + ix;
      const Vec<T> vec = load_vector(static_cast<const T*>(p.input) + at * channels + c, left, p.in_vectors);
#pragma unroll
      for (int e = 0; e < kLanes; ++e) sums[t][e] += to_compute(vec[e]) * to_compute(grad[e]);
    }
  }

  // 3. The slices' sums, in their order.
#pragma unroll
  for (int t = 0; t < kDepthwiseGradTaps; ++t) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kLanes; ++e) shared[threadIdx.x * kLanes + e] = sums[t][e];
    __syncthreads();
    const int block_channels = p.block_vectors * kLanes;
    for (int i = threadIdx.x; i < block_channels; i += kDepthwiseThreads) {
      if (first_tap + t >= p.kernel_row || first_channel + i >= channels) continue;
      Compute<T> sum = 0;
      for (int s = 0; s < p.block_slices; ++s) sum += shared[s * block_channels + i];
      const int64_t k = static_cast<int64_t>(part) * channels + first_channel + i;
      static_cast<Compute<T>*>(p.result)[k * p.kernel_row + first_tap + t] = sum;
    }
  }
}

}  // namespace fastcnn::cuda
