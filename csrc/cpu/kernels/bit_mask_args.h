// Arguments of the kernel that takes a ReLU's mask from its output.
#pragma once
#include <cstdint>

namespace fastcnn::cpu {

// Bit set where output > 0, and where it is NaN; a row's last bits are zero.
template <typename T>
struct ReluMaskArgs {
  const T* output;  // [rows, channels]
  uint8_t* mask;    // [rows, mask_stride]
  int64_t rows, channels, mask_stride;
};

}  // namespace fastcnn::cpu
