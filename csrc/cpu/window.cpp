// Copies of image rows with their halo, so that kernels never test for borders, and transposes to NHWC on the way.
#include <algorithm>
#include <cstring>
#include <map>
#include <type_traits>

#include "conv2d.h"

namespace fastcnn::cpu {
namespace {

template <typename Get>
int64_t best(const std::vector<Tap>& taps, Get get, bool largest) {
  int64_t value = taps.empty() ? 0 : get(taps[0]);
  for (const Tap& t : taps) value = largest ? std::max(value, get(t)) : std::min(value, get(t));
  return value;
}

// Rows of neighbours: `length` of each one, then zeros up to `padded`.
template <typename T, typename Copy>
void copy_rows(const T* source, int64_t source_stride, Copy* target, int64_t rows, int64_t length, int64_t padded) {
  if (source_stride == length && length == padded) length *= rows, padded *= rows, rows = 1;
  if constexpr (std::is_same_v<T, Copy>) {
    for (int64_t row = 0; row < rows; ++row, source += source_stride, target += padded) {
      std::memcpy(target, source, sizeof(T) * length);
      std::memset(target + length, 0, sizeof(T) * (padded - length));
    }
  } else {
    kernels().of<T>().conv2d_widen({source, source_stride, target, padded, rows, length, padded, nullptr, false});
  }
}

// Positions 0 to `count` - 1 of one dimension, by how many of the taps lie before and behind the image.
using Sides = std::map<std::pair<int64_t, int64_t>, std::vector<int64_t>>;
template <typename Get>
Sides positions_by_side(const std::vector<Tap>& taps, Get get, int64_t count, int64_t step, int64_t size) {
  Sides sides;
  for (int64_t i = 0; i < count; ++i) {
    const auto before = std::ranges::count_if(taps, [&](const Tap& t) { return i * step + get(t) < 0; });
    const auto behind = std::ranges::count_if(taps, [&](const Tap& t) { return i * step + get(t) >= size; });
    sides[{before, behind}].push_back(i);
  }
  return sides;
}

template <typename Copy, typename T>
Copy convert(T x) {
  if constexpr (std::is_same_v<T, Copy>) {
    return x;
  } else {
    return widen(x);
  }
}

}  // namespace

int64_t WindowGrid::min_h() const {
  return best(taps, [](const Tap& t) { return t.h; }, false);
}
int64_t WindowGrid::max_h() const {
  return best(taps, [](const Tap& t) { return t.h; }, true);
}
int64_t WindowGrid::min_w() const {
  return best(taps, [](const Tap& t) { return t.w; }, false);
}
int64_t WindowGrid::max_w() const {
  return best(taps, [](const Tap& t) { return t.w; }, true);
}

std::vector<WindowClass> window_classes(const WindowGrid& grid, int64_t height, int64_t width) {
  const auto h_of = [](const Tap& t) { return t.h; };
  const auto w_of = [](const Tap& t) { return t.w; };
  std::vector<WindowClass> classes;
  for (const auto& [row_side, rows] : positions_by_side(grid.taps, h_of, grid.rows, grid.step_h, height))
    for (const auto& [col_side, cols] : positions_by_side(grid.taps, w_of, grid.cols, grid.step_w, width)) {
      WindowClass c{rows, cols, {}};
      for (size_t t = 0; t < grid.taps.size(); ++t) {
        const int64_t h = rows[0] * grid.step_h + grid.taps[t].h, w = cols[0] * grid.step_w + grid.taps[t].w;
        if (h >= 0 && h < height && w >= 0 && w < width) c.taps.push_back(t);
      }
      classes.push_back(std::move(c));
    }
  return classes;
}

template <typename T>
ImageView<T> image_view(const at::Tensor& nchw) {
  return {data_of<T>(nchw), nchw.size(0),   nchw.size(2),   nchw.size(3),  nchw.size(1),
          nchw.stride(0),   nchw.stride(2), nchw.stride(3), nchw.stride(1)};
}

int64_t window_rows_size(const WindowGrid& grid, int64_t rows, int64_t depth) {
  const int64_t height = (rows - 1) * grid.step_h + grid.max_h() - grid.min_h() + 1;
  const int64_t width = (grid.cols - 1) * grid.step_w + grid.max_w() - grid.min_w() + 1;
  return height * width * depth;
}

template <typename T, typename Copy>
void copy_window_rows(const ImageView<T>& image, const WindowGrid& grid, int64_t n, int64_t i0, int64_t i1,
                      int64_t pitch, Copy* dst) {
  const int64_t first_h = i0 * grid.step_h + grid.min_h(), first_w = grid.min_w();
  const int64_t height = (i1 - i0 - 1) * grid.step_h + grid.max_h() - grid.min_h() + 1;
  const int64_t width = (grid.cols - 1) * grid.step_w + grid.max_w() - first_w + 1;
  const int64_t depth = image.depth;
  // Columns [begin, end) of the copy lie inside the image.
  const int64_t begin = std::clamp<int64_t>(-first_w, 0, width);
  const int64_t end = std::clamp<int64_t>(image.width - first_w, begin, width);
  for (int64_t y = 0; y < height; ++y, dst += width * pitch) {
    const int64_t h = first_h + y;
    if (h < 0 || h >= image.height) {
      std::memset(dst, 0, sizeof(Copy) * width * pitch);
      continue;
    }
    std::memset(dst, 0, sizeof(Copy) * begin * pitch);
    std::memset(dst + end * pitch, 0, sizeof(Copy) * (width - end) * pitch);
    const T* src = image.data + n * image.stride_n + h * image.stride_h + (first_w + begin) * image.stride_w;
    Copy* inside = dst + begin * pitch;
    const int64_t columns = end - begin;
    if (image.stride_c == 1 || depth == 1) {
      copy_rows(src, image.stride_w, inside, columns, depth, pitch);
    } else {
      if (pitch > depth) std::memset(inside, 0, sizeof(Copy) * columns * pitch);
      for (int64_t c = 0; c < depth; ++c)
        for (int64_t x = 0; x < columns; ++x)
          inside[x * pitch + c] = convert<Copy>(src[x * image.stride_w + c * image.stride_c]);
    }
  }
}

#define FASTCNN_INSTANTIATE(T)                                                                                     \
  template ImageView<T> image_view<T>(const at::Tensor&);                                                          \
  template void copy_window_rows<T, Compute<T>>(const ImageView<T>&, const WindowGrid&, int64_t, int64_t, int64_t, \
                                                int64_t, Compute<T>*);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE
template void copy_window_rows<BFloat16, BFloat16>(const ImageView<BFloat16>&, const WindowGrid&, int64_t, int64_t,
                                                   int64_t, int64_t, BFloat16*);

}  // namespace fastcnn::cpu
