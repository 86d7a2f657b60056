// What the host code of max pooling hands to its kernels. Images are dense NHWC; offsets say which tap of a window won,
// kh * kernel_w + kw, in 8 bits up to 256 taps.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/geometry.h"
#include "element.h"

namespace fastcnn::cuda {

// At most one of the offsets is not null in any of these.
struct MaxPool2dArgs {
  Pool2dGeometry geometry;
  Dtype dtype;
  const void* input;   // [n, in_h, in_w, c]
  void* output;        // [n, out_h, out_w, c]
  uint8_t* offsets8;   // as output, or null
  int32_t* offsets32;  // as output, or null
};
cudaError_t launch_max_pool2d(const MaxPool2dArgs& args, cudaStream_t stream);

struct MaxPool2dBackwardArgs {
  Pool2dGeometry geometry;
  Dtype dtype;
  const void* grad_output;  // [n, out_h, out_w, c]
  const uint8_t* offsets8;  // as grad_output
  const int32_t* offsets32;
  void* grad_input;  // [n, in_h, in_w, c]
};
cudaError_t launch_max_pool2d_backward(const MaxPool2dBackwardArgs& args, cudaStream_t stream);

struct MaxPool2dIndicesArgs {
  Pool2dGeometry geometry;
  const uint8_t* offsets8;  // [n, out_h, out_w, c]
  const int32_t* offsets32;
  int64_t* indices;  // as offsets: h * in_w + w
};
cudaError_t launch_max_pool2d_indices(const MaxPool2dIndicesArgs& args, cudaStream_t stream);

// What `values` hold at each window's winner; zero for a window that lies outside the image.
struct MaxPool2dGatherArgs {
  Pool2dGeometry geometry;
  Dtype dtype;
  const void* values;       // [n, in_h, in_w, c]
  const uint8_t* offsets8;  // [n, out_h, out_w, c]
  const int32_t* offsets32;
  void* output;  // as offsets
};
cudaError_t launch_max_pool2d_gather(const MaxPool2dGatherArgs& args, cudaStream_t stream);

}  // namespace fastcnn::cuda
