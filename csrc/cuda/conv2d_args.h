// What the host code of conv2d hands to its launchers: the pass, the geometry, and tensors as pointers, all NHWC.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/geometry.h"
#include "element.h"

namespace fastcnn::cuda {

enum class Conv2dPass : int32_t { forward, grad_input, grad_weight };

// What a pass does not read may be null. No dimension may be empty.
struct Conv2dArgs {
  Conv2dPass pass;
  Dtype dtype;
  Conv2dGeometry geometry;
  int capability;  // of the device: 75, 80, ...
  bool tf32;       // whether float32 products may be taken in TensorFloat-32
  bool relu;
  const void* input;        // [n, in_h, in_w, in_channels]
  const void* weight;       // [out_channels, kernel_h, kernel_w, in_channels / groups]
  const void* bias;         // [out_channels], or null
  const void* grad_output;  // [n, out_h, out_w, out_channels]
  // The output or the gradient of the input, shaped as they are. The weight's gradient is summed in parts, each over
  // its own positions and in float32 (float64 of float64), which conv2d_sum_parts_kernel adds in their order: [parts,
  // out_channels, kernel_h, kernel_w, in_channels / groups].
  void* result;
};

}  // namespace fastcnn::cuda
