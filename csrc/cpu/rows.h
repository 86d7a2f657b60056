// Tensors as rows of neighbouring channels, which may lie apart: the gradient of a concat's part does.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace fastcnn::cpu {

// The elements from one row to the next of a tensor [..., c] whose rows are evenly spaced; none where they are not, or
// where channels are no neighbours.
inline std::optional<int64_t> row_stride(const at::Tensor& rows) {
  const int64_t channels = rows.size(-1);
  if (channels > 1 && rows.stride(-1) != 1) return std::nullopt;
  std::optional<int64_t> stride;
  int64_t next = 0;  // the stride that the next larger dimension must have
  for (int64_t d = rows.dim() - 2; d >= 0; --d) {
    if (rows.size(d) == 1) continue;
    if (!stride) {
      if (rows.stride(d) < channels) return std::nullopt;
      stride = rows.stride(d);
    } else if (rows.stride(d) != next) {
      return std::nullopt;
    }
    next = rows.stride(d) * rows.size(d);
  }
  return stride.value_or(channels);
}

}  // namespace fastcnn::cpu
