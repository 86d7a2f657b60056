// The mask of a ReLU's output: a thread a byte.
#pragma once
#include "bit_mask.cuh"
#include "relu_mask_launch.h"

namespace fastcnn::cuda {

template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    relu_mask_kernel(const ReluMaskArgs args, const Tiling tiling, const bool aligned) {
  const Place at = place_in(tiling);
  const int64_t channel = at.unit * kUnit, channels = args.channels - channel;
  if (channels <= 0) return;
  for (int64_t row = at.row_begin + threadIdx.y; row < at.row_end; row += blockDim.y) {
    Compute<T> y[kUnit];
    load_lanes(static_cast<const T*>(args.output) + row * args.channels + channel, channels, aligned, y);
    args.mask[row * tiling.units + at.unit] = passing_bits(y);
  }
}

}  // namespace fastcnn::cuda
