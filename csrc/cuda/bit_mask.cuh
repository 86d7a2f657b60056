// A ReLU's mask, one bit an element: byte channel / 8 of its row, bit channel % 8.
#pragma once
#include "lanes.cuh"

namespace fastcnn::cuda {

constexpr int kUnit = 8;  // channels of a thread: a byte of the mask, and whole vectors of every type

// The byte of a ReLU's outputs: set above zero and for NaN, as torch passes the gradient. What stands for channels that
// are not there is zero.
template <typename C>
__device__ inline uint8_t passing_bits(const C (&values)[kUnit]) {
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) bits |= values[i] <= 0 ? 0u : 1u << i;
  return static_cast<uint8_t>(bits);
}

}  // namespace fastcnn::cuda
