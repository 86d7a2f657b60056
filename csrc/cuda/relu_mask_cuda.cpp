// The mask of a ReLU's output on CUDA tensors, for the ops that compute a ReLU in passing and keep no more of it.
#include <torch/library.h>

#include <algorithm>

#include "../common/backends.h"
#include "../common/geometry.h"
#include "../fallback.h"
#include "relu_mask_launch.h"
#include "tensors.h"

namespace fastcnn::cuda {
namespace {

at::Tensor relu_mask_cuda(const at::Tensor& output) {
  if (!is_covered(output.scalar_type())) return fallback::relu_mask(output);
  const c10::cuda::CUDAGuard guard(output.device());
  const int64_t channels = output.size(1), rows = output.numel() / std::max<int64_t>(1, channels);
  const at::Tensor mask = empty({rows, ceil_div(channels, 8)}, output.options().dtype(at::kByte));
  if (output.numel() == 0) return mask;
  backends::record_kernel("relu_mask");
  const at::Tensor nhwc = output.movedim(1, -1).contiguous();
  const ReluMaskArgs args{dtype_of(output), rows, channels, nhwc.const_data_ptr(), mask.mutable_data_ptr<uint8_t>()};
  C10_CUDA_CHECK(launch_relu_mask(args, c10::cuda::getCurrentCUDAStream()));
  return mask;
}

}  // namespace
}  // namespace fastcnn::cuda

TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) { m.impl("_relu_mask", fastcnn::cuda::relu_mask_cuda); }
