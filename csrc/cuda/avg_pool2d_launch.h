// What the host code of average pooling, regular and adaptive, hands to its kernels. Images are dense NHWC.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/geometry.h"
#include "element.h"

namespace fastcnn::cuda {

struct AvgPool2dArgs {
  Pool2dGeometry geometry;  // kernel_h is 0 where the windows are adaptive, otherwise the dilation 1
  Dtype dtype;
  bool count_include_pad;
  int64_t divisor;     // what sums are divided by instead of the window's size, or 0
  const void* source;  // forward: input [n, in_h, in_w, c]; backward: grad_output [n, out_h, out_w, c]
  void* result;        // forward: output; backward: grad_input
};

cudaError_t launch_avg_pool2d(const AvgPool2dArgs& args, cudaStream_t stream);
cudaError_t launch_avg_pool2d_backward(const AvgPool2dArgs& args, cudaStream_t stream);

// One window over the whole image.
struct GlobalAvgPool2dArgs {
  Dtype dtype;
  int64_t batch, pixels, channels;
  const void* input;  // [n, pixels, c]
  void* output;       // [n, c]
};
cudaError_t launch_global_avg_pool2d(const GlobalAvgPool2dArgs& args, cudaStream_t stream);

}  // namespace fastcnn::cuda
