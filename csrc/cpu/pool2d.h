// What the pooling ops share on the CPU: the windows along each axis as tables, and the split of work over threads.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

#include "../common/geometry.h"
#include "../common/layout.h"
#include "capability.h"
#include "dtypes.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {

using layout::kNhwc;

// The windows of a regular pooling along one axis. Their divisors are the taps inside the padded image, or only those
// inside the image itself.
std::vector<PoolWindow> pool_windows(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                                     int64_t dilation, bool count_include_pad);

// Window i of `out` covers the positions floor(i in / out) to ceil((i + 1) in / out).
std::vector<PoolWindow> adaptive_windows(int64_t in, int64_t out);

// Whether no position lies under two of the windows.
bool are_disjoint(const std::vector<PoolWindow>& windows, int64_t dilation);

// The same windows seen from the positions, in the windows' order.
class HitTable {
 public:
  HitTable(const std::vector<PoolWindow>& windows, int64_t positions, int64_t dilation);
  PoolHits view() const { return {starts_.data(), hits_.data()}; }

 private:
  std::vector<int64_t> starts_;
  std::vector<PoolHit> hits_;
};

// Calls kernel(args) with shares of `rows`; a thread gets at least some ten microseconds of work.
template <typename Args>
void over_rows(const Args& args, int64_t rows, int64_t elements_per_row, void (*kernel)(const Args&)) {
  constexpr int64_t kGrainElements = 64 * 1024;  // of the larger image
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements_per_row));
  parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    Args part = args;
    part.row_begin = begin;
    part.row_end = end;
    kernel(part);
  });
}

inline at::Tensor in_format(const at::Tensor& nhwc, at::MemoryFormat format) {
  return layout::in_format<empty>(nhwc, format);
}

template <typename Fill>
at::Tensor filled(at::IntArrayRef sizes, const at::TensorOptions& options, at::MemoryFormat format, const Fill& fill) {
  return layout::filled<empty>(sizes, options, format, fill);
}

}  // namespace fastcnn::cpu
