// Arguments of the sigmoid: rows of channels, strides in elements.
#pragma once
#include <cstdint>

namespace fastcnn::cpu {

// data[row][c] = 1 / (1 + exp(-data[row][c])), in place.
template <typename T>
struct SigmoidArgs {
  T* data;  // [rows, stride]
  int64_t stride, rows, channels;
};

}  // namespace fastcnn::cpu
