// Copies of image rows with their halo, so that kernels never test for borders, and transposes to NHWC on the way.
#include <algorithm>
#include <cstring>

#include "conv2d.h"

namespace fastcnn::cpu {
namespace {

template <typename Get>
int64_t best(const std::vector<Tap>& taps, Get get, bool largest) {
  int64_t value = taps.empty() ? 0 : get(taps[0]);
  for (const Tap& t : taps) value = largest ? std::max(value, get(t)) : std::min(value, get(t));
  return value;
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

template <typename T>
ImageView<T> image_view(const at::Tensor& nchw) {
  return {nchw.const_data_ptr<T>(), nchw.size(0),   nchw.size(2),   nchw.size(3),  nchw.size(1),
          nchw.stride(0),           nchw.stride(2), nchw.stride(3), nchw.stride(1)};
}

int64_t window_rows_size(const WindowGrid& grid, int64_t rows, int64_t depth) {
  const int64_t height = (rows - 1) * grid.step_h + grid.max_h() - grid.min_h() + 1;
  const int64_t width = (grid.cols - 1) * grid.step_w + grid.max_w() - grid.min_w() + 1;
  return height * width * depth;
}

template <typename T>
void copy_window_rows(const ImageView<T>& image, const WindowGrid& grid, int64_t n, int64_t i0, int64_t i1, T* dst) {
  const int64_t first_h = i0 * grid.step_h + grid.min_h(), first_w = grid.min_w();
  const int64_t height = (i1 - i0 - 1) * grid.step_h + grid.max_h() - grid.min_h() + 1;
  const int64_t width = (grid.cols - 1) * grid.step_w + grid.max_w() - first_w + 1;
  const int64_t depth = image.depth;
  // Columns [begin, end) of the copy lie inside the image.
  const int64_t begin = std::clamp<int64_t>(-first_w, 0, width);
  const int64_t end = std::clamp<int64_t>(image.width - first_w, begin, width);
  for (int64_t y = 0; y < height; ++y, dst += width * depth) {
    const int64_t h = first_h + y;
    if (h < 0 || h >= image.height) {
      std::memset(dst, 0, sizeof(T) * width * depth);
      continue;
    }
    std::memset(dst, 0, sizeof(T) * begin * depth);
    std::memset(dst + end * depth, 0, sizeof(T) * (width - end) * depth);
    const T* src = image.data + n * image.stride_n + h * image.stride_h + (first_w + begin) * image.stride_w;
    T* inside = dst + begin * depth;
    const int64_t columns = end - begin;
    if ((image.stride_c == 1 || depth == 1) && image.stride_w == depth) {
      std::memcpy(inside, src, sizeof(T) * columns * depth);
    } else if (image.stride_c == 1) {
      for (int64_t x = 0; x < columns; ++x)
        std::memcpy(inside + x * depth, src + x * image.stride_w, sizeof(T) * depth);
    } else {
      for (int64_t c = 0; c < depth; ++c)
        for (int64_t x = 0; x < columns; ++x) inside[x * depth + c] = src[x * image.stride_w + c * image.stride_c];
    }
  }
}

template ImageView<float> image_view<float>(const at::Tensor&);
template ImageView<double> image_view<double>(const at::Tensor&);
template void copy_window_rows<float>(const ImageView<float>&, const WindowGrid&, int64_t, int64_t, int64_t, float*);
template void copy_window_rows<double>(const ImageView<double>&, const WindowGrid&, int64_t, int64_t, int64_t, double*);

}  // namespace fastcnn::cpu
