// The mask of a ReLU's output, for the ops that compute a ReLU in passing and keep no more of it.
#include <torch/library.h>

#include <algorithm>

#include "../common/backends.h"
#include "../common/geometry.h"
#include "../fallback.h"
#include "capability.h"
#include "dtypes.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

constexpr int64_t kGrainElements = 64 * 1024;  // what a thread reads at least

template <typename T>
void fill_mask(const at::Tensor& rows, const at::Tensor& mask) {
  backends::record_kernel("relu_mask");
  const T* output = data_of<T>(rows);
  uint8_t* bits = mask.mutable_data_ptr<uint8_t>();
  // Rows of whole bytes are one row: 8 elements are then a row of as many channels.
  const int64_t channels = rows.size(-1), stride = ceil_div(channels, 8);
  const bool whole = channels % 8 == 0;
  const int64_t units = whole ? rows.numel() / 8 : rows.numel() / channels;
  const int64_t unit = whole ? 8 : channels, unit_bytes = whole ? 1 : stride;
  parallel_for(0, units, std::max<int64_t>(1, kGrainElements / unit), [&](int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    kernels().of<T>().relu_mask(
        {output + begin * unit, bits + begin * unit_bytes, whole ? 1 : count, whole ? count * unit : channels, stride});
  });
}

at::Tensor relu_mask_cpu(const at::Tensor& output) {
  if (!is_covered(output.scalar_type())) return fallback::relu_mask(output);
  const int64_t channels = output.size(1), rows = output.numel() / std::max<int64_t>(1, channels);
  const at::Tensor mask = empty({rows, ceil_div(channels, 8)}, output.options().dtype(at::kByte));
  if (output.numel() == 0) return mask;
  const at::Tensor nhwc = output.movedim(1, -1).contiguous();
  with_element(output.scalar_type(), [&]<typename T>() { fill_mask<T>(nhwc, mask); });
  return mask;
}

}  // namespace
}  // namespace fastcnn::cpu

TORCH_LIBRARY_IMPL(fastcnn, CPU, m) { m.impl("_relu_mask", fastcnn::cpu::relu_mask_cpu); }
