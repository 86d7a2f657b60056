// concat on CUDA tensors: one launch for up to kMaxConcatInputs of them.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../checks/checks.h"
#include "../common/backends.h"
#include "../fallback.h"
#include "concat_launch.h"

namespace fastcnn::cuda {
namespace {

at::Tensor concat_cuda(at::TensorList tensors, int64_t dim) {
  const checks::Concat c = checks::concat(tensors, dim);
  if (!c.plain) return fallback::concat(tensors, dim);
  backends::record_kernel("concat");
  const c10::cuda::CUDAGuard guard(tensors[0].device());
  at::Tensor output = at::empty(c.sizes, tensors[0].options().dtype(c.dtype), c.memory_format);
  if (output.numel() == 0) return output;

  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const int64_t inner = c.inner * output.element_size();
  ConcatArgs args{};
  args.output = static_cast<char*>(output.mutable_data_ptr());
  args.rows = c.rows;
  args.row_bytes = c.sizes[c.dim] * inner;
  int64_t offset = 0;
  std::vector<at::Tensor> dense;  // alive until their launch
  const auto flush = [&] {
    if (args.count > 0) C10_CUDA_CHECK(launch_concat(args, stream));
    args.count = 0;
    dense.clear();
  };
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (c.skipped[i] || tensors[i].numel() == 0) continue;
    dense.push_back(tensors[i].to(c.dtype).contiguous(c.memory_format));
    const int64_t run_bytes = dense.back().size(c.dim) * inner;
    args.inputs[args.count++] = {static_cast<const char*>(dense.back().const_data_ptr()), run_bytes, offset};
    offset += run_bytes;
    if (args.count == kMaxConcatInputs) flush();
  }
  flush();
  return output;
}

}  // namespace
}  // namespace fastcnn::cuda

TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) { m.impl("concat", fastcnn::cuda::concat_cuda); }
