// What conv2d's passes share: grad_output through a fused ReLU, its sums, and sums of parts.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "element.h"

namespace fastcnn::cuda {

// What is summed up is left in parts, in float32 (float64 of float64), for launch_conv2d_sum_parts.
struct Conv2dGradOutputArgs {
  Dtype dtype;
  int64_t rows, channels;
  const void* grad_output;   // [rows, channels]
  const uint8_t* activated;  // [rows, ceil(channels / 8)], the gradient passes where its bit is set; or null
  void* grad;                // [rows, channels], or null where it is not wanted
  void* sums;                // [parts, channels], or null
};
int64_t conv2d_grad_output_parts(const Conv2dGradOutputArgs& args);
cudaError_t launch_conv2d_grad_output(const Conv2dGradOutputArgs& args, cudaStream_t stream);

// Adds the parts in their order, in float32 or float64, then bias and ReLU, and rounds once.
struct Conv2dSumPartsArgs {
  Dtype dtype;  // of the sums and the bias
  int64_t count, size;
  const void* parts;  // [count, size]
  void* sums;         // [size], or where there is a bias [size / channels, channels]
  const void* bias;   // [channels], or null
  int64_t channels;   // of the bias
  bool relu;
};
cudaError_t launch_conv2d_sum_parts(const Conv2dSumPartsArgs& args, cudaStream_t stream);

}  // namespace fastcnn::cuda
