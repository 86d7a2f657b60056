#include "pool2d.h"

namespace fastcnn::cpu {

std::vector<PoolWindow> pool_windows(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                                     int64_t dilation, bool count_include_pad) {
  std::vector<PoolWindow> windows(out);
  for (int64_t i = 0; i < out; ++i) {
    const int64_t start = i * stride - pad;
    const int64_t tap = start < 0 ? ceil_div(-start, dilation) : 0;
    const int64_t begin = start + tap * dilation;
    const int64_t count = begin < in ? std::min(kernel - tap, ceil_div(in - begin, dilation)) : 0;
    windows[i] = {begin, count, tap, count_include_pad ? std::min(kernel, in + pad - start) : count};
  }
  return windows;
}

std::vector<PoolWindow> adaptive_windows(int64_t in, int64_t out) {
  std::vector<PoolWindow> windows(out);
  for (int64_t i = 0; i < out; ++i) {
    const int64_t begin = i * in / out, count = ceil_div((i + 1) * in, out) - begin;
    windows[i] = {begin, count, 0, count};
  }
  return windows;
}

bool are_disjoint(const std::vector<PoolWindow>& windows, int64_t dilation) {
  if (dilation != 1) return false;
  for (size_t i = 1; i < windows.size(); ++i)
    if (windows[i - 1].begin + windows[i - 1].count > windows[i].begin) return false;
  return !windows.empty();
}

HitTable::HitTable(const std::vector<PoolWindow>& windows, int64_t positions, int64_t dilation)
    : starts_(positions + 1, 0) {
  const auto each = [&](const auto& visit) {
    for (size_t i = 0; i < windows.size(); ++i)
      for (int64_t t = 0; t < windows[i].count; ++t)
        visit(windows[i].begin + t * dilation,
              PoolHit{static_cast<int64_t>(i), windows[i].tap + t, windows[i].divisor});
  };
  each([&](int64_t position, const PoolHit&) { ++starts_[position + 1]; });
  for (int64_t p = 0; p < positions; ++p) starts_[p + 1] += starts_[p];
  hits_.resize(starts_[positions]);
  std::vector<int64_t> next(starts_.begin(), starts_.end() - 1);
  each([&](int64_t position, const PoolHit& hit) { hits_[next[position]++] = hit; });
}

}  // namespace fastcnn::cpu
