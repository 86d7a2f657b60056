// Drivers of the weight gradient, for many and for few input channels. Both go through the batch chunk by chunk, with
// the input copied with its halo; what a chunk is depends on the sizes alone, and so does the order of additions.

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../common/backends.h"
#include "conv2d.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

// Bytes of a chunk, input copy and output gradient: what a second-level cache of 1 MB holds beside the tiles' results,
// and a fraction of it where many chunks are to run side by side.
constexpr int64_t kChunkBytes = 768 * 1024;
// Each chunk reads and writes the whole result: where that is larger than the cache, longer chunks cost less.
constexpr int64_t kLargeResultBytes = 1024 * 1024, kLongChunkBytes = 1536 * 1024;
constexpr int64_t kTapsChunkBytes = 128 * 1024;
constexpr int64_t kTapsMaxBytes = 256 * 1024;   // of the result, as every part keeps a copy
constexpr int64_t kTapsParts = 16;              // sums that run side by side and are added in order at the end
constexpr int64_t kSumGrain = 64 * 1024;        // elements that a thread adds up at least
constexpr size_t kUnpackedBlocks = 8;           // of lanes that read the output's gradient where it is
constexpr int kPanelRows[] = {4, 5, 6, 8, 10};  // what conv2d_grad_weight has tiles for

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
    const bool inside = grid.min_h() >= 0 && grid.min_w() >= 0 &&
                        (grid.rows - 1) * grid.step_h + grid.max_h() < input.height &&
                        (grid.cols - 1) * grid.step_w + grid.max_w() < input.width;
    copies = !std::is_same_v<T, Element> || !inside || input.stride_c != 1 || input.stride_w != input.depth ||
             input.depth % kernel.width != 0;
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

// Few input channels: the sums of a fixed number of parts of the batch, each one in a copy of the result.
template <typename T>
class GradWeightTapsRun {
  using Element = Compute<T>;

 public:
  explicit GradWeightTapsRun(GradWeightProblem<T>& p) : p_(p) {
    const Conv2dGeometry& g = p.g;
    for (int64_t kh = 0; kh < g.kernel_h; ++kh)
      for (int64_t kw = 0; kw < g.kernel_w; ++kw)
        for (int64_t c = 0; c < p.input.depth; ++c)
          row_offsets_.push_back(kh * g.dilation_h * p.row_stride + kw * g.dilation_w * p.input.depth + c);
    p_.choose_chunks(kTapsChunkBytes, false);
  }

  // For one pixel.
  static int64_t cost(const GradWeightProblem<T>& p) {
    const LaneBlocks lanes(p.g.group_out(), p.kernel.width, p.kernel.max_vectors);
    const int vectors = static_cast<int>(ceil_div(lanes.vectors, lanes.count));
    return grad_weight_tile_cost(lanes.vectors * p.g.kernel_h * p.g.kernel_w * p.input.depth, vectors,
                                 p.kernel.rows_for(vectors));
  }

  void run() {
    const int64_t channels = p_.g.group_out(), reduction = static_cast<int64_t>(row_offsets_.size());
    const int64_t chunks = p_.chunk_count(), parts = std::min(chunks, kTapsParts), size = reduction * channels;
    const auto options = at::TensorOptions().dtype(kComputeDtype<T>);
    at::Tensor sums = empty({parts, size}, options);
    at::Tensor copies = empty({at::get_num_threads(), p_.copy_size()}, options);
    Element* sums_data = sums.mutable_data_ptr<Element>();
    Element* copies_data = copies.mutable_data_ptr<Element>();
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      Element* copy = copies_data + at::get_thread_num() * p_.copy_size();
      std::vector<int64_t> offsets;
      for (int64_t part = begin; part < end; ++part) {
        std::fill_n(sums_data + part * size, size, Element(0));
        for (int64_t c = chunks * part / parts; c < chunks * (part + 1) / parts; ++c)
          add_chunk(p_.chunk(c), copy, offsets, sums_data + part * size);
      }
    });
    parallel_for(0, reduction, ceil_div(kSumGrain, parts * channels), [&](int64_t begin, int64_t end) {
      Element* sum = sums_data + begin * channels;
      p_.kernel.conv2d_add_parts({sum, size, parts, (end - begin) * channels, sum});
      for (int64_t r = begin; r < end; ++r)
        for (int64_t k = 0; k < channels; ++k) p_.grad_weight[k * reduction + r] = sums_data[r * channels + k];
    });
  }

 private:
  void add_chunk(const typename GradWeightProblem<T>::Chunk& c, Element* copy, std::vector<int64_t>& offsets,
                 Element* sums) const {
    const Element* input = p_.prepare(c, copy);
    p_.list_windows(c, offsets);
    const int64_t channels = p_.g.group_out();
    const int64_t vectors = ceil_div(channels, p_.kernel.width), blocks = ceil_div(vectors, p_.kernel.max_vectors);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = vectors * b / blocks, last = vectors * (b + 1) / blocks, lane = first * p_.kernel.width;
      p_.kernel.conv2d_grad_weight_taps(
          {input, offsets.data(), row_offsets_.data(), static_cast<int64_t>(row_offsets_.size()),
           p_.grad_at(c, c.n0) + lane, p_.g.out_channels, p_.pixels(c), sums + lane, channels,
           static_cast<int>(last - first), std::min<int64_t>(channels - lane, (last - first) * p_.kernel.width)});
    }
  }

  GradWeightProblem<T>& p_;
  std::vector<int64_t> row_offsets_;
};

// Many input channels: the output's gradient is packed into panels of a few channels. A thread takes some of the panels
// and lanes through the whole batch with a copy of the input of its own, so that threads meet only at the end.
template <typename T>
class GradWeightRun {
  using Element = Compute<T>;

 public:
  explicit GradWeightRun(GradWeightProblem<T>& p) : p_(p), g_(p.g) {
    choose_tile();
    const int64_t result_bytes = g_.group_out() * g_.kernel_h * g_.kernel_w * p.input.depth * int64_t{sizeof(Element)};
    p_.choose_chunks(result_bytes > kLargeResultBytes ? kLongChunkBytes : kChunkBytes, p.kernel.conv2d_pair == 2);
  }

  int64_t cost() const { return cost_ / p_.kernel.conv2d_pair; }  // for one pixel

  void run() {
    const int64_t threads = at::get_num_threads();
    const int64_t panel_parts = std::min(threads, panel_count_);
    const int64_t lane_parts = std::min(ceil_div(threads, panel_parts), static_cast<int64_t>(blocks_.size()));
    const int64_t panels_size = ceil_div(panel_count_, panel_parts) * panel_rows_ * p_.images * p_.rows * p_.grid.cols;
    const auto options = at::TensorOptions().dtype(kComputeDtype<T>);
    at::Tensor scratch = empty({threads, p_.copy_size() + panels_size}, options);
    Element* scratch_data = scratch.mutable_data_ptr<Element>();
    parallel_for(0, panel_parts * lane_parts, 1, [&](int64_t begin, int64_t end) {
      Element* copy = scratch_data + at::get_thread_num() * (p_.copy_size() + panels_size);
      std::vector<GradWeightPixel> pixels;
      for (int64_t part = begin; part < end; ++part) {
        const int64_t panel = part / lane_parts, lane = part % lane_parts;
        const auto first_block = blocks_.begin() + blocks_.size() * lane / lane_parts;
        const std::vector<LaneBlock> blocks(first_block, blocks_.begin() + blocks_.size() * (lane + 1) / lane_parts);
        for (int64_t c = 0; c < p_.chunk_count(); ++c)
          add_chunk(p_.chunk(c), panel_count_ * panel / panel_parts, panel_count_ * (panel + 1) / panel_parts, blocks,
                    c > 0, copy, copy + p_.copy_size(), pixels);
      }
    });
  }

 private:
  void choose_tile() {
    const int64_t runs = g_.kernel_h * (merged() ? 1 : g_.kernel_w);
    const GradWeightTile tile = choose_grad_weight_tile(p_.kernel, runs, run_length(), g_.group_out());
    blocks_ = lane_blocks(tile.vectors), panel_rows_ = tile.rows, panel_count_ = ceil_div(g_.group_out(), tile.rows);
    cost_ = tile.cost;
  }

  // Whether neighbouring taps' input channels are neighbours, and so lanes of one run.
  bool merged() const { return g_.dilation_w == 1; }
  int64_t run_length() const { return merged() ? g_.kernel_w * p_.input.depth : p_.input.depth; }

  std::vector<LaneBlock> lane_blocks(int max_vectors) const {
    const int64_t depth = p_.input.depth;
    const LaneBlocks run(run_length(), p_.kernel.width, max_vectors);
    std::vector<LaneBlock> blocks;
    for (int64_t kh = 0; kh < g_.kernel_h; ++kh)
      for (int64_t kw = 0; kw < (merged() ? 1 : g_.kernel_w); ++kw)
        for (int64_t b = 0; b < run.count; ++b) {
          const int64_t lane = run.first_lane(b), lanes = run.first_lane(b + 1) - lane;
          const int64_t valid = std::min(run_length() - lane, lanes);
          blocks.push_back({kh * g_.dilation_h * p_.row_stride + kw * g_.dilation_w * depth + lane,
                            (kh * g_.kernel_w + kw) * depth + lane, valid, static_cast<int>(lanes / run.width), kh,
                            kw + lane / depth, kw + (lane + valid - 1) / depth});
        }
    return blocks;
  }

  void add_chunk(const typename GradWeightProblem<T>::Chunk& c, int64_t first_panel, int64_t last_panel,
                 const std::vector<LaneBlock>& blocks, bool adds, Element* copy, Element* panels,
                 std::vector<GradWeightPixel>& pixels) const {
    const int64_t panel_size = p_.pixels(p_.first_half(c)) * panel_rows_;
    // 1. The input with its halo, and the output's gradient in panels.
    const Element* input = p_.prepare(c, copy);
    for (int64_t panel = first_panel; panel < last_panel; ++panel)
      if (is_packed(panel)) pack_panel(c, panel * panel_rows_, panels + (panel - first_panel) * panel_size);
    // 2. The tiles: a block of lanes stays in cache while the panels pass.
    const int64_t row_stride = g_.kernel_h * g_.kernel_w * p_.input.depth;
    Positions listed{};
    pixels.clear();
    for (const LaneBlock& block : blocks) {
      const Positions at = p_.positions(c, block);
      if (pixels.empty() || !(at == listed)) p_.list_pixels(c, at, pixels);
      listed = at;
      for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        const int64_t k = panel * panel_rows_;
        const Element* grad = panels + (panel - first_panel) * panel_size;
        int64_t grad_stride = panel_rows_;
        if constexpr (std::is_same_v<T, Element>)
          if (!is_packed(panel)) grad = p_.grad_at(c, c.n0) + k, grad_stride = g_.out_channels;
        p_.kernel.conv2d_grad_weight({grad, grad_stride, input + block.in_offset, pixels.data(),
                                      static_cast<int64_t>(pixels.size()) - kGradWeightAhead, adds,
                                      p_.grad_weight + k * row_stride + block.out_offset, row_stride, panel_rows_,
                                      static_cast<int>(std::min<int64_t>(panel_rows_, g_.group_out() - k)),
                                      block.vectors, block.lanes});
      }
    }
  }

  // Packing pays where many blocks of lanes read a panel, and is needed where its last rows are not there to read, or
  // are no elements.
  bool is_packed(int64_t panel) const {
    return !std::is_same_v<T, Element> || blocks_.size() > kUnpackedBlocks ||
           (panel + 1) * panel_rows_ > g_.group_out();
  }

  // Output channels from k on. A chunk's pixels lie one after the other: it is whole images, or rows of one.
  void pack_panel(const typename GradWeightProblem<T>::Chunk& c, int64_t k, Element* panel) const {
    const int64_t all = p_.pixels(c), first = p_.pixels(p_.first_half(c)), both = p_.pairs ? all - first : first;
    const int64_t valid = std::min<int64_t>(g_.group_out() - k, panel_rows_);
    const T* grad = p_.grad_at(c, c.n0) + k;
    if constexpr (std::is_same_v<T, Element>) {
      switch (valid < panel_rows_ ? 0 : panel_rows_) {
#define FASTCNN_PACK(rows) \
  case rows:               \
    return pack_rows<rows>(grad, all, panel);
        FASTCNN_PACK(4)
        FASTCNN_PACK(5)
        FASTCNN_PACK(6)
        FASTCNN_PACK(8)
        FASTCNN_PACK(10)
#undef FASTCNN_PACK
      }
    }
    const T* second = p_.pairs ? grad + first * g_.out_channels : nullptr;
    p_.kernel.conv2d_widen({grad, g_.out_channels, panel, panel_rows_, both, valid, panel_rows_, second, p_.pairs});
    p_.kernel.conv2d_widen({grad + both * g_.out_channels, g_.out_channels, panel + both * panel_rows_, panel_rows_,
                            first - both, valid, panel_rows_, nullptr, p_.pairs});
  }

  template <int kRows>
  void pack_rows(const T* grad, int64_t pixels, T* panel) const {
    for (int64_t p = 0; p < pixels; ++p) std::memcpy(panel + p * kRows, grad + p * g_.out_channels, sizeof(T) * kRows);
  }

  GradWeightProblem<T>& p_;
  const Conv2dGeometry& g_;
  std::vector<LaneBlock> blocks_;
  int64_t panel_count_, cost_;
  int panel_rows_;
};

}  // namespace

int64_t grad_weight_tile_cost(int64_t operations, int vectors, int rows) {
  return operations + operations * (vectors + rows) / (2 * vectors * rows);
}

// Of a panel's padded rows and the lanes' registers, those of the fewest operations.
template <typename T>
GradWeightTile choose_grad_weight_tile(const KernelSet<T>& kernel, int64_t runs, int64_t run_length, int64_t outputs) {
  GradWeightTile best{1, kPanelRows[0], std::numeric_limits<int64_t>::max()};
  for (int max_vectors = kernel.max_vectors; max_vectors >= 1; --max_vectors) {
    const LaneBlocks run(run_length, kernel.width, max_vectors);
    const int vectors = static_cast<int>(ceil_div(run.vectors, run.count));
    for (const int rows : kPanelRows) {
      if (rows > kernel.rows_for(vectors)) continue;
      const int64_t operations = runs * run.vectors * ceil_div(outputs, rows) * rows;
      const int64_t cost = grad_weight_tile_cost(operations, vectors, rows);
      if (cost < best.cost) best = {max_vectors, rows, cost};
    }
  }
  return best;
}

template <typename T>
void conv2d_grad_weight_direct(const Conv2dGeometry& g, const at::Tensor& grad_output, const at::Tensor& input,
                               at::Tensor& grad_weight) {
  if (g.batch == 0) {
    grad_weight.zero_();
    return;
  }
  const int64_t group_weights = g.group_out() * g.kernel_h * g.kernel_w * g.group_in();
  for (int64_t group = 0; group < g.groups; ++group) {
    ImageView<T> view = image_view<T>(input);
    view.data += group * g.group_in() * view.stride_c;
    view.depth = g.group_in();
    const T* grad = data_of<T>(grad_output) + group * g.group_out();
    Compute<T>* gradient = grad_weight.mutable_data_ptr<Compute<T>>() + group * group_weights;
    GradWeightProblem<T> problem(g, view, grad, gradient);
    GradWeightRun<T> run(problem);
    const auto planar = planar_grad_weight_cost<T>(g);
    if (planar && 10 * *planar <= 9 * g.out_w * std::min(run.cost(), GradWeightTapsRun<T>::cost(problem))) {
      if (group == 0) backends::record_kernel("conv2d_planar_grad_weight");
      conv2d_planar_grad_weight<T>(g, view, grad, gradient);
    } else if (group_weights * static_cast<int64_t>(sizeof(Compute<T>)) <= kTapsMaxBytes &&
               10 * GradWeightTapsRun<T>::cost(problem) <= 9 * run.cost()) {
      if (group == 0) backends::record_kernel("conv2d_grad_weight_taps");
      GradWeightTapsRun<T>(problem).run();
    } else {
      if (group == 0) backends::record_kernel("conv2d_grad_weight");
      run.run();
    }
  }
}

#define FASTCNN_INSTANTIATE(T)                                                                        \
  template GradWeightTile choose_grad_weight_tile<T>(const KernelSet<T>&, int64_t, int64_t, int64_t); \
  template void conv2d_grad_weight_direct<T>(const Conv2dGeometry&, const at::Tensor&, const at::Tensor&, at::Tensor&);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
