// One group's weight gradient, cut into chunks: what its drivers share.
#pragma once
#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "conv2d.h"

namespace fastcnn::cpu {

// Neighbouring lanes of the result: (kernel column, input channel) of one kernel row, where the copy has them side by
// side.
struct LaneBlock {
  int64_t in_offset, out_offset, lanes;
  int vectors;
  int64_t kernel_row, first_col, last_col;
};

// Output positions, of which those of a chunk count.
struct Positions {
  int64_t row_begin, row_end, col_begin, col_end;
  bool operator==(const Positions&) const = default;
};

// One group's problem, its chunks and the copy of a chunk's input.
template <typename T>
struct GradWeightProblem {
  using Element = Compute<T>;

  const Conv2dGeometry& g;
  const KernelSet<T>& kernel;
  ImageView<T> input;    // one group's channels
  const T* grad_output;  // NHWC, at the group's first channel
  Element* grad_weight;  // [group_out, kernel_h, kernel_w, depth]
  WindowGrid grid;
  bool copies;           // a chunk's input, with its halo and as elements; else it is read where it is
  int64_t row_stride;    // of the copy, or of the input
  int64_t images, rows;  // of a chunk: whole images, or rows of one image
  int64_t image_size;    // of the copy
  bool pairs;            // an element of the copy is a pair of T, of the same place in both halves of a chunk

  struct Chunk {
    int64_t n0, n1, i0, i1;
  };

  GradWeightProblem(const Conv2dGeometry& g, const ImageView<T>& input, const T* grad_output, Element* grad_weight)
      : g(g), kernel(kernels().of<T>()), input(input), grad_output(grad_output), grad_weight(grad_weight) {
    grid.rows = g.out_h, grid.cols = g.out_w, grid.step_h = g.stride_h, grid.step_w = g.stride_w;
    for (int64_t kh = 0; kh < g.kernel_h; ++kh)
      for (int64_t kw = 0; kw < g.kernel_w; ++kw)
        grid.taps.push_back({kh * g.dilation_h - g.pad_h, kw * g.dilation_w - g.pad_w, 0});
    // Whole registers are read, so that lanes beyond the last window's must belong to a copy.
    copies = !std::is_same_v<T, Element> || !grid.inside(input.height, input.width) || input.stride_c != 1 ||
             input.stride_w != input.depth || input.depth % kernel.width != 0;
    row_stride =
        copies ? input.depth * ((grid.cols - 1) * grid.step_w + grid.max_w() - grid.min_w() + 1) : input.stride_h;
  }

  void choose_chunks(int64_t chunk_bytes, bool in_pairs) {
    pairs = in_pairs;
    const int64_t image_elements =
        window_rows_size(grid, grid.rows, input.depth) + grid.rows * grid.cols * g.group_out();
    const int64_t image_bytes = image_elements * static_cast<int64_t>(sizeof(Element)) / (pairs ? 2 : 1);
    images = std::clamp<int64_t>(chunk_bytes / std::max<int64_t>(1, image_bytes), 1, g.batch);
    rows = images > 1 ? grid.rows : ceil_div(grid.rows, std::min(grid.rows, ceil_div(image_bytes, chunk_bytes)));
    image_size = window_rows_size(grid, rows, input.depth);
  }
  int64_t chunk_count() const { return ceil_div(g.batch, images) * ceil_div(grid.rows, rows); }
  Chunk chunk(int64_t index) const {
    const int64_t per_image = ceil_div(grid.rows, rows);
    const int64_t n = index / per_image * images, i = index % per_image * rows;
    return {n, std::min(n + images, g.batch), i, std::min(i + rows, grid.rows)};
  }
  // The halves of a chunk in pairs: the second one is empty, as long as the first or an image or a row shorter. Else
  // the first one is all.
  Chunk first_half(Chunk c) const {
    if (!pairs) return c;
    c.n1 - c.n0 > 1 ? c.n1 = (c.n0 + c.n1 + 1) / 2 : c.i1 = (c.i0 + c.i1 + 1) / 2;
    return c;
  }
  Chunk second_half(Chunk c) const {
    c.n1 - c.n0 > 1 ? c.n0 = (c.n0 + c.n1 + 1) / 2 : c.i0 = (c.i0 + c.i1 + 1) / 2;
    return c;
  }
  // Elements of a chunk's copy; the last lanes' registers may reach beyond the last window.
  int64_t copy_size() const {
    return copies ? (images + (pairs ? 1 : 0)) * image_size + kernel.width * kernel.max_vectors : 0;
  }
  // Where a chunk's first window begins: in `copy`, into which its input is copied, or where it is.
  const Element* prepare(const Chunk& c, Element* copy) const {
    if constexpr (std::is_same_v<T, Element>)
      if (!copies) return input.data + c.n0 * input.stride_n + c.i0 * grid.step_h * input.stride_h;
    if constexpr (std::is_same_v<T, BFloat16>)
      if (pairs) return prepare_pairs(c, copy);
    for (int64_t n = c.n0; n < c.n1; ++n)
      copy_window_rows(input, grid, n, c.i0, c.i1, input.depth, copy + (n - c.n0) * image_size);
    return copy;
  }
  // Both halves' images go through the room of one image behind the copy.
  const Element* prepare_pairs(const Chunk& c, Element* copy) const {
    const Chunk a = first_half(c), b = second_half(c);
    T* first = reinterpret_cast<T*>(copy + copy_size() - image_size);
    T* second = first + image_size;
    const int64_t size = window_rows_size(grid, a.i1 - a.i0, input.depth);
    for (int64_t m = 0; m < a.n1 - a.n0; ++m) {
      copy_window_rows(input, grid, a.n0 + m, a.i0, a.i1, input.depth, first);
      const bool paired = b.n0 + m < b.n1 && b.i0 < b.i1;
      const int64_t filled = paired ? window_rows_size(grid, b.i1 - b.i0, input.depth) : 0;
      if (paired) copy_window_rows(input, grid, b.n0 + m, b.i0, b.i1, input.depth, second);
      std::fill(second + filled, second + size, T{});
      kernel.conv2d_widen({first, size, copy + m * image_size, size, 1, size, size, second, true});
    }
    return copy;
  }
  int64_t pixels(const Chunk& c) const { return (c.n1 - c.n0) * (c.i1 - c.i0) * grid.cols; }
  const T* grad_at(const Chunk& c, int64_t n) const {
    return grad_output + (n * grid.rows + c.i0) * grid.cols * g.out_channels;
  }

  // Where a pixel's window begins, after the chunk's first.
  int64_t window(int64_t n, int64_t i, int64_t j) const {
    return n * (copies ? image_size : input.stride_n) + i * grid.step_h * row_stride + j * grid.step_w * input.depth;
  }
  // Of all of a chunk's pixels; they are those of every chunk of as many.
  void list_windows(const Chunk& c, std::vector<int64_t>& windows) const {
    if (static_cast<int64_t>(windows.size()) == pixels(c)) return;
    windows.clear();
    for (int64_t n = 0; n < c.n1 - c.n0; ++n)
      for (int64_t i = 0; i < c.i1 - c.i0; ++i)
        for (int64_t j = 0; j < grid.cols; ++j) windows.push_back(window(n, i, j));
  }
  // The positions where one of a block's taps lies inside the image. Rows that are paired count together.
  Positions positions(const Chunk& c, const LaneBlock& b) const {
    const int64_t h = b.kernel_row * g.dilation_h - g.pad_h, w = -g.pad_w;
    const OutputRange rows = outputs_inside(g.out_h, g.stride_h, h, g.in_h);
    const int64_t col_begin = outputs_inside(g.out_w, g.stride_w, b.last_col * g.dilation_w + w, g.in_w).begin;
    const int64_t col_end = outputs_inside(g.out_w, g.stride_w, b.first_col * g.dilation_w + w, g.in_w).end;
    if (pairs && c.n1 - c.n0 == 1) return {0, g.out_h, col_begin, col_end};
    return {rows.begin, rows.end, col_begin, col_end};
  }
  // A chunk's pixels at these positions, and some more for the prefetch; of pairs, the first ones.
  void list_pixels(const Chunk& whole, const Positions& at, std::vector<GradWeightPixel>& pixels) const {
    const Chunk c = first_half(whole);
    pixels.clear();
    for (int64_t n = 0; n < c.n1 - c.n0; ++n)
      for (int64_t i = std::max(at.row_begin, c.i0); i < std::min(at.row_end, c.i1); ++i)
        for (int64_t j = at.col_begin; j < at.col_end; ++j)
          pixels.push_back({(n * (c.i1 - c.i0) + i - c.i0) * grid.cols + j, window(n, i - c.i0, j)});
    pixels.resize(pixels.size() + kGradWeightAhead, pixels.empty() ? GradWeightPixel{} : pixels.back());
  }
};

// For few input channels: vector operations for one pixel, and the run.
template <typename T>
int64_t grad_weight_taps_cost(const GradWeightProblem<T>& problem);
template <typename T>
void conv2d_grad_weight_taps(GradWeightProblem<T>& problem);

}  // namespace fastcnn::cpu
