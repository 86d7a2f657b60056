// From the caller's layout to NHWC and back: dense images for pooling, and rows of neighbouring channels, which may lie
// apart (the gradient of a concat's part does), for batch norm. Where memory has to be allocated, the device's own
// function does it.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace fastcnn::layout {

constexpr auto kNhwc = at::MemoryFormat::ChannelsLast;

// Allocates as at::empty does.
using Empty = at::Tensor (*)(at::IntArrayRef sizes, const at::TensorOptions& options,
                             std::optional<at::MemoryFormat> format);

// `nhwc` itself where its strides are those of the format, otherwise a copy. (`contiguous` would leave the strides of
// one-channel and one-pixel images, which are dense in either format.)
template <Empty kEmpty>
at::Tensor in_format(const at::Tensor& nhwc, at::MemoryFormat format) {
  return format == kNhwc ? nhwc : kEmpty(nhwc.sizes(), nhwc.options(), format).copy_(nhwc);
}

// A result of the caller's format. `fill` gets a dense NHWC tensor to write: the result itself where its memory is
// that.
template <Empty kEmpty, typename Fill>
at::Tensor filled(at::IntArrayRef sizes, const at::TensorOptions& options, at::MemoryFormat format, const Fill& fill) {
  const at::Tensor result = kEmpty(sizes, options, format);
  if (result.numel() == 0) return result;
  if (result.is_contiguous(kNhwc)) {
    fill(result);
    return result;
  }
  const at::Tensor nhwc = kEmpty(sizes, options, kNhwc);
  fill(nhwc);
  return result.copy_(nhwc);
}

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

// [n, c, ...] as rows of neighbouring channels [n, ..., c] in `dtype`; the same memory where it already is that.
template <Empty kEmpty>
at::Tensor rows_of(const at::Tensor& t, at::ScalarType dtype) {
  const at::Tensor rows = t.movedim(1, -1);
  if (rows.scalar_type() == dtype && row_stride(rows).has_value()) return rows;
  return kEmpty(rows.sizes(), t.options().dtype(dtype), std::nullopt).copy_(rows);
}

// A new tensor of the shape, dtype and memory format of `like`, written as rows: into its own memory where that is laid
// out so, otherwise into a buffer that finish() copies.
template <Empty kEmpty>
struct RowsResult {
  at::Tensor result, rows;

  RowsResult() = default;
  explicit RowsResult(const at::Tensor& like)
      : result(kEmpty(like.sizes(), like.options(), like.suggest_memory_format())), rows(result.movedim(1, -1)) {
    if (!rows.is_contiguous()) rows = kEmpty(rows.sizes(), like.options(), std::nullopt);
  }
  at::Tensor finish() const {
    if (result.data_ptr() != rows.data_ptr()) result.copy_(rows.movedim(-1, 1));
    return result;
  }
};

}  // namespace fastcnn::layout
