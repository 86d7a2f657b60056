// What the host code of conv2d hands to its launchers: the pass, the geometry, and tensors as pointers, all NHWC.
#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "../common/geometry.h"
#include "element.h"

namespace fastcnn::cuda {

enum class Conv2dPass : int32_t { forward, grad_input, grad_weight };

// What a block of the direct kernels takes: positions, quads of channels, groups, and channels of the depth at a time.
struct Conv2dTile {
  int64_t tile_h, tile_w, quads, groups, chunk;
};

// What a pass does not read may be null. No dimension may be empty.
struct Conv2dArgs {
  Conv2dPass pass;
  Dtype dtype;
  Conv2dGeometry geometry;
  int capability;  // of the device: 75, 80, ...
  bool tf32;       // whether float32 products may be taken in TensorFloat-32
  bool relu;
  bool batch_invariant;     // whether an image's result must not depend on the batch
  const void* input;        // [n, in_h, in_w, in_channels]
  const void* weight;       // [out_channels, kernel_h, kernel_w, in_channels / groups]
  const void* bias;         // [out_channels], or null
  const void* grad_output;  // [n, out_h, out_w, out_channels]
  // The output or the gradient of the input or weight, shaped as they are, or parts of it, each summed over its own
  // terms and in float32 (float64 of float64): [parts, ...]. launch_conv2d_sum_parts adds them in their order, and then
  // bias and ReLU.
  void* result;
  Conv2dTile tile;  // as choose_conv2d_direct_tile leaves it; of no concern to the others
};

// Elements of the result.
inline int64_t result_size(const Conv2dArgs& args) {
  const Conv2dGeometry& g = args.geometry;
  if (args.pass == Conv2dPass::forward) return g.batch * g.out_h * g.out_w * g.out_channels;
  if (args.pass == Conv2dPass::grad_input) return g.batch * g.in_h * g.in_w * g.in_channels;
  return g.out_channels * g.kernel_h * g.kernel_w * g.group_in();
}

// Whether a geometry's indices have room in the kernels, which count one image's positions, one window's terms and one
// row of weights in 32 bits. Whole tensors may be larger.
inline bool conv2d_covers(const Conv2dGeometry& g) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const auto fits = [](int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    return in + 2 * pad < kMost && out < kMost && kernel < kMost && stride < kMost && dilation < kMost;
  };
  return fits(g.in_h, g.out_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h) &&
         fits(g.in_w, g.out_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w) && g.in_h * g.in_w < kMost &&
         g.out_h * g.out_w < kMost && g.in_channels < kMost && g.out_channels < kMost &&
         g.kernel_h * g.kernel_w < kMost && g.kernel_h * g.kernel_w * std::max(g.group_in(), g.group_out()) < kMost;
}

}  // namespace fastcnn::cuda
