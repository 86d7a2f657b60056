// concat on CUDA tensors: one launch for any number of them.
#include <torch/library.h>

#include <cstring>
#include <utility>
#include <vector>

#include "../checks/checks.h"
#include "../common/backends.h"
#include "../fallback.h"
#include "concat_launch.h"
#include "tensors.h"

namespace fastcnn::cuda {
namespace {

// A tensor in the output's dtype as rows of runs, and the elements from one row to the next: the tensor's own memory
// where the joined dimension is innermost and its rows are evenly spaced, a dense copy elsewhere.
std::pair<at::Tensor, int64_t> in_rows(const checks::Concat& c, const at::Tensor& t) {
  const at::Tensor part = t.to(c.dtype);
  const bool nhwc = c.memory_format == kNhwc && c.dim == 1;
  if (nhwc || (c.memory_format == at::MemoryFormat::Contiguous && c.dim == part.dim() - 1))
    if (const auto stride = layout::row_stride(nhwc ? part.movedim(1, -1) : part)) return {part, *stride};
  return {part.contiguous(c.memory_format), part.size(c.dim) * c.inner};
}

// The inputs in the GPU's memory. From pinned memory, which torch keeps until the stream has copied it, so that nobody
// waits.
at::Tensor upload(const std::vector<ConcatInput>& inputs, const at::Tensor& like) {
  const auto bytes = at::TensorOptions().dtype(at::kByte);
  const int64_t size = static_cast<int64_t>(inputs.size() * sizeof(ConcatInput));
  const at::Tensor host = empty({size}, bytes.pinned_memory(true));
  std::memcpy(host.mutable_data_ptr(), inputs.data(), size);
  return host.to(like.device(), /*non_blocking=*/true);
}

at::Tensor concat_cuda(at::TensorList tensors, int64_t dim) {
  const checks::Concat c = checks::concat(tensors, dim);
  if (!c.plain) return fallback::concat(tensors, dim);
  backends::record_kernel("concat");
  const c10::cuda::CUDAGuard guard(tensors[0].device());
  const at::Tensor output = empty(c.sizes, tensors[0].options().dtype(c.dtype), c.memory_format);
  if (output.numel() == 0) return output;

  const int64_t bytes = output.element_size();
  std::vector<ConcatInput> inputs;
  std::vector<at::Tensor> alive;  // until their launch
  int64_t offset = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (c.skipped[i] || tensors[i].numel() == 0) continue;
    auto [part, stride] = in_rows(c, tensors[i]);
    const int64_t run_bytes = part.size(c.dim) * c.inner * bytes;
    inputs.push_back({static_cast<const char*>(part.const_data_ptr()), run_bytes, stride * bytes, offset});
    alive.push_back(std::move(part));
    offset += run_bytes;
  }
  const at::Tensor table = inputs.size() > kMaxConcatInputs ? upload(inputs, output) : at::Tensor();
  const ConcatArgs args{static_cast<char*>(output.mutable_data_ptr()),
                        c.rows,
                        offset,
                        static_cast<int64_t>(inputs.size()),
                        inputs.data(),
                        table.defined() ? static_cast<const ConcatInput*>(table.const_data_ptr()) : nullptr};
  C10_CUDA_CHECK(launch_concat(args, c10::cuda::getCurrentCUDAStream()));
  return output;
}

}  // namespace
}  // namespace fastcnn::cuda

TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) { m.impl("concat", fastcnn::cuda::concat_cuda); }
