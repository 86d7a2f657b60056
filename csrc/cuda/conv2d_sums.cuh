// Sums of conv2d, each in a fixed order: grad_output's over its rows, and those of the parts that blocks leave.
#pragma once
#include "conv2d_sums_launch.h"
#include "conv2d_window.cuh"

namespace fastcnn::cuda {

constexpr int kSumsThreads = 128;
constexpr int kMaskLanes = 8;     // channels of a thread: those of one byte of the mask
constexpr int kSumsVectors = 32;  // runs of kMaskLanes channels, at most, that a block takes

struct GradOutputProblem {
  Conv2dGradOutputArgs args;
  int block_vectors, tiles;  // runs of channels of a block, and blocks that a row takes
  int64_t part_rows;
  bool vectors;  // rows are multiples of 16 bytes
};

// One block for each part of the rows and tile of the channels.
template <typename T>
__global__ void __launch_bounds__(kSumsThreads) conv2d_grad_output_kernel(const GradOutputProblem p) {
  constexpr int kLanes = kVector<T>, kVectors = kMaskLanes * static_cast<int>(sizeof(T)) / 16;
  __shared__ Compute<T> shared[kSumsThreads * kMaskLanes];
  const Conv2dGradOutputArgs& a = p.args;

  // 1. Each thread's rows of its channels.
  const int slices = kSumsThreads / p.block_vectors, slice = static_cast<int>(threadIdx.x) / p.block_vectors;
  const int64_t tile = blockIdx.x % p.tiles, part = blockIdx.x / p.tiles;
  const int64_t first_channel = tile * p.block_vectors * kMaskLanes;
  const int64_t c = first_channel + static_cast<int>(threadIdx.x) % p.block_vectors * kMaskLanes;
  const int64_t mask_row = (a.channels + kMaskLanes - 1) / kMaskLanes;
  const int64_t end = min((part + 1) * p.part_rows, a.rows);
  Compute<T> sums[kMaskLanes] = {};
  for (int64_t row = part * p.part_rows + slice; row < end && c < a.channels; row += slices) {
    const unsigned passes = a.activated != nullptr ? a.activated[row * mask_row + c / kMaskLanes] : 0xffu;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = row * a.channels + c + v * kLanes, left = a.channels - c - v * kLanes;
      Vec<T> vec = load_vector(static_cast<const T*>(a.grad_output) + at, left, p.vectors);
#pragma unroll
      for (int e = 0; e < kLanes; ++e) {
        if ((passes >> (v * kLanes + e) & 1) == 0) vec[e] = from_compute<T>(0);
        sums[v * kLanes + e] += to_compute(vec[e]);
      }
      if (a.grad != nullptr) store_vector(static_cast<T*>(a.grad) + at, vec, left, p.vectors);
    }
  }
  if (a.sums == nullptr) return;

  // 2. The slices' sums, in their order.
#pragma unroll
  for (int e = 0; e < kMaskLanes; ++e) shared[threadIdx.x * kMaskLanes + e] = sums[e];
  __syncthreads();
  const int block_channels = p.block_vectors * kMaskLanes;
  for (int i = threadIdx.x; i < block_channels; i += kSumsThreads) {
    if (first_channel + i >= a.channels) break;
    Compute<T> sum = 0;
    for (int s = 0; s < slices; ++s) sum += shared[s * block_channels + i];
    static_cast<Compute<T>*>(a.sums)[part * a.channels + first_channel + i] = sum;
  }
}

constexpr int kPartsThreads = 256, kPartsColumns = 32, kPartsSlices = kPartsThreads / kPartsColumns;

// A block's threads are slices of the parts by columns of the sums.
template <typename T>
__global__ void __launch_bounds__(kPartsThreads) conv2d_sum_parts_kernel(const Conv2dSumPartsArgs a) {
  __shared__ Compute<T> shared[kPartsSlices][kPartsColumns];
  const int column = threadIdx.x % kPartsColumns, slice = threadIdx.x / kPartsColumns;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kPartsColumns + column;
  Compute<T> sum = 0;
  for (int64_t part = slice; part < a.count && i < a.size; part += kPartsSlices)
    sum += static_cast<const Compute<T>*>(a.parts)[part * a.size + i];
  shared[slice][column] = sum;
  __syncthreads();
  if (slice != 0 || i >= a.size) return;
#pragma unroll
  for (int s = 1; s < kPartsSlices; ++s) sum += shared[s][column];
  const Compute<T> bias = a.bias != nullptr ? to_compute(static_cast<const T*>(a.bias)[i % a.channels]) : 0;
  static_cast<T*>(a.sums)[i] = from_compute<T>(finish(sum, bias, a.relu));
}

}  // namespace fastcnn::cuda
