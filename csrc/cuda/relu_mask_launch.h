// What the host code of a ReLU's mask hands to its kernel.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "element.h"

namespace fastcnn::cuda {

struct ReluMaskArgs {
  Dtype dtype;
  int64_t rows, channels;
  const void* output;  // [rows, channels]
  uint8_t* mask;       // [rows, ceil(channels / 8)]
};
cudaError_t launch_relu_mask(const ReluMaskArgs& args, cudaStream_t stream);

}  // namespace fastcnn::cuda
