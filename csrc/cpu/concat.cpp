// concat on the CPU: for each tensor one strided copy of runs, with no arithmetic, so any dtype of plain bytes will do.
#include <torch/library.h>

#include <cstring>

#include "../checks/checks.h"
#include "../common/backends.h"
#include "../fallback.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

constexpr int64_t kGrainBytes = 128 * 1024;  // below this a second thread costs more than it gives

// Copies `rows` runs of `bytes` each from a dense source to runs `out_stride` apart.
void copy_runs(char* out, int64_t out_stride, const char* in, int64_t rows, int64_t bytes) {
  parallel_for(0, rows, std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, bytes)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t r = begin; r < end; ++r) std::memcpy(out + r * out_stride, in + r * bytes, bytes);
               });
}

at::Tensor concat_cpu(at::TensorList tensors, int64_t dim) {
  const checks::Concat c = checks::concat(tensors, dim);
  if (!c.plain) return fallback::concat(tensors, dim);
  backends::record_kernel("concat");
  at::Tensor output = empty(c.sizes, tensors[0].options().dtype(c.dtype), c.memory_format);
  if (output.numel() == 0) return output;

  const int64_t inner = c.inner * output.element_size();
  char* out = static_cast<char*>(output.mutable_data_ptr());
  const int64_t out_stride = c.sizes[c.dim] * inner;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (c.skipped[i]) continue;
    const at::Tensor dense = tensors[i].to(c.dtype).contiguous(c.memory_format);
    const int64_t bytes = dense.size(c.dim) * inner;
    copy_runs(out, out_stride, static_cast<const char*>(dense.const_data_ptr()), c.rows, bytes);
    out += bytes;
  }
  return output;
}

}  // namespace
}  // namespace fastcnn::cpu

TORCH_LIBRARY_IMPL(fastcnn, CPU, m) { m.impl("concat", fastcnn::cpu::concat_cpu); }
