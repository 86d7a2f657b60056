// Driver of the weight gradient, and the choice between its kernels. They go through the batch chunk by chunk, with the
// input copied with its halo; what a chunk is depends on the sizes alone, and so does the order of additions.
#include "conv2d_grad_weight.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../common/backends.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

// Bytes of a chunk, input copy and output gradient: what a second-level cache of 1 MB holds beside the tiles' results,
// and a fraction of it where many chunks are to run side by side.
constexpr int64_t kChunkBytes = 768 * 1024;
// Each chunk reads and writes the whole result: where that is larger than the cache, longer chunks cost less.
constexpr int64_t kLargeResultBytes = 1024 * 1024, kLongChunkBytes = 1536 * 1024;
constexpr int64_t kTapsMaxBytes = 256 * 1024;  // of the result, as every part keeps a copy
constexpr size_t kUnpackedBlocks = 8;          // of lanes that read the output's gradient where it is
constexpr int64_t kRowsTogether = 16;  // pixels that are packed into all panels, or blocks, before the next ones
constexpr int64_t kPixelLoads = 6;     // of a tile for a pixel, beside its operands: its place, prefetches
constexpr int kPanelRows[] = {4, 5, 6, 8, 10};  // what conv2d_grad_weight has tiles for

// Where registers are few, a block's lanes are one line of the cache, and the strides of many channels bring a chunk's
// lines into few of its sets. So a 1x1 kernel's input, read where it is otherwise, is copied block by block: from this
// many channels on that pays where several panels read it (EPYC 9004 held to AVX2: 1.0 to 1.4 times as fast).
constexpr int64_t kCopiedLanes = 32, kCopiedLanesPanels = 4;
constexpr int kCopiedLanesVectors = 2;

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
    const int64_t pixels = p_.images * p_.rows * p_.grid.cols;
    choose_copy(panel_count_ / panel_parts, pixels);
    const int64_t copied_lanes = ceil_div(static_cast<int64_t>(blocks_.size()), lane_parts) * lane_stride_ * pixels;
    const int64_t copy_size = copies_lanes_ ? copied_lanes : p_.copy_size();
    const int64_t room_size = copy_size + ceil_div(panel_count_, panel_parts) * panel_rows_ * pixels;
    const auto options = at::TensorOptions().dtype(kComputeDtype<T>);
    at::Tensor scratch = empty({threads, room_size}, options);
    Element* scratch_data = scratch.mutable_data_ptr<Element>();
    parallel_for(0, panel_parts * lane_parts, 1, [&](int64_t begin, int64_t end) {
      Room room{scratch_data + at::get_thread_num() * room_size};
      room.panels = room.copy + copy_size;
      for (int64_t part = begin; part < end; ++part) {
        const int64_t panel = part / lane_parts, lane = part % lane_parts;
        const auto first_block = blocks_.begin() + blocks_.size() * lane / lane_parts;
        std::vector<LaneBlock> blocks(first_block, blocks_.begin() + blocks_.size() * (lane + 1) / lane_parts);
        for (size_t i = 0; copies_lanes_ && i < blocks.size(); ++i) blocks[i].in_offset = i * lane_stride_ * pixels;
        for (int64_t c = 0; c < p_.chunk_count(); ++c)
          add_chunk(p_.chunk(c), panel_count_ * panel / panel_parts, panel_count_ * (panel + 1) / panel_parts, blocks,
                    c > 0, room);
      }
    });
  }

 private:
  // A thread's own.
  struct Room {
    Element* copy;
    Element* panels = nullptr;
    std::vector<GradWeightPixel> pixels{};
  };

  void choose_tile() {
    const int64_t runs = g_.kernel_h * (merged() ? 1 : g_.kernel_w);
    const GradWeightTile tile = choose_grad_weight_tile(p_.kernel, runs, run_length(), g_.group_out());
    blocks_ = lane_blocks(tile.vectors), panel_rows_ = tile.rows, panel_count_ = ceil_div(g_.group_out(), tile.rows);
    cost_ = tile.cost;
  }

  void choose_copy(int64_t panels, int64_t pixels) {
    for (const LaneBlock& b : blocks_) lane_stride_ = std::max(lane_stride_, int64_t{b.vectors} * p_.kernel.width);
    copies_lanes_ = std::is_same_v<T, Element> && !p_.copies && g_.kernel_h * g_.kernel_w == 1 &&
                    p_.kernel.max_vectors <= kCopiedLanesVectors && p_.input.depth >= kCopiedLanes &&
                    panels >= kCopiedLanesPanels && pixels >= kRowsTogether;
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
                 const std::vector<LaneBlock>& blocks, bool adds, Room& room) const {
    // 1. The input with its halo, or block by block, and the output's gradient in panels.
    const Element* input = p_.prepare(c, room.copy);
    if (copies_lanes_) input = copy_lanes(c, input, blocks, room);
    const int64_t panel_size = p_.pixels(p_.first_half(c)) * panel_rows_;
    pack_panels(c, first_panel, last_panel, panel_size, room.panels);
    // 2. The tiles: a block of lanes stays in cache while the panels pass.
    const int64_t row_stride = g_.kernel_h * g_.kernel_w * p_.input.depth;
    Positions listed{};
    room.pixels.clear();
    for (const LaneBlock& block : blocks) {
      const Positions at = p_.positions(c, block);
      if (room.pixels.empty() || !(at == listed)) list_pixels(c, at, room.pixels);
      listed = at;
      for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        const int64_t k = panel * panel_rows_;
        const Element* grad = room.panels + (panel - first_panel) * panel_size;
        int64_t grad_stride = panel_rows_;
        if constexpr (std::is_same_v<T, Element>)
          if (!is_packed(panel)) grad = p_.grad_at(c, c.n0) + k, grad_stride = g_.out_channels;
        p_.kernel.conv2d_grad_weight({grad, grad_stride, input + block.in_offset, room.pixels.data(),
                                      static_cast<int64_t>(room.pixels.size()) - kGradWeightAhead, adds,
                                      p_.grad_weight + k * row_stride + block.out_offset, row_stride, panel_rows_,
                                      static_cast<int>(std::min<int64_t>(panel_rows_, g_.group_out() - k)),
                                      block.vectors, block.lanes});
      }
    }
  }

  // A pixel's lanes lie after those of the pixel before where they were copied.
  void list_pixels(const typename GradWeightProblem<T>::Chunk& c, const Positions& at,
                   std::vector<GradWeightPixel>& pixels) const {
    p_.list_pixels(c, at, pixels);
    for (size_t i = 0; copies_lanes_ && i < pixels.size(); ++i) pixels[i].input = pixels[i].grad * lane_stride_;
  }

  const Element* copy_lanes(const typename GradWeightProblem<T>::Chunk& c, const Element* input,
                            const std::vector<LaneBlock>& blocks, Room& room) const {
    const int64_t pixels = p_.pixels(c);
    p_.list_pixels(c, {c.i0, c.i1, 0, g_.out_w}, room.pixels);
    for (int64_t first = 0; first < pixels; first += kRowsTogether)
      for (const LaneBlock& b : blocks) {
        const int64_t lanes = b.vectors * p_.kernel.width;
        Element* to = room.copy + b.in_offset;
        for (int64_t p = first; p < std::min(first + kRowsTogether, pixels); ++p)
          copy_registers(input + room.pixels[p].input + b.out_offset, lanes, to + p * lane_stride_);
      }
    return room.copy;
  }

  // Without a call of memcpy, which took a third of a copy's time.
  static void copy_registers(const Element* from, int64_t lanes, Element* to) {
    constexpr int64_t kLeast = 16 / sizeof(Element);
    for (int64_t i = 0; i < lanes; i += kLeast) std::memcpy(to + i, from + i, kLeast * sizeof(Element));
  }

  // Packing pays where many blocks of lanes read a panel, and is needed where its last rows are not there to read, or
  // are no elements.
  bool is_packed(int64_t panel) const {
    return !std::is_same_v<T, Element> || blocks_.size() > kUnpackedBlocks ||
           (panel + 1) * panel_rows_ > g_.group_out();
  }

  // A chunk's pixels lie one after the other: it is whole images, or rows of one. Few of them at a time go into all
  // panels, so that they are read as they lie; those that become elements on the way have a kernel for a panel.
  void pack_panels(const typename GradWeightProblem<T>::Chunk& c, int64_t first_panel, int64_t last_panel,
                   int64_t panel_size, Element* panels) const {
    const int64_t together = std::is_same_v<T, Element> ? kRowsTogether : p_.pixels(c);
    for (int64_t p = 0; p < p_.pixels(c); p += together)
      for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        if (!is_packed(panel)) continue;
        Element* to = panels + (panel - first_panel) * panel_size;
        if constexpr (std::is_same_v<T, Element>) {
          pack_rows(c, p, std::min(together, p_.pixels(c) - p), panel * panel_rows_, to + p * panel_rows_);
        } else {
          widen_panel(c, panel * panel_rows_, to);
        }
      }
  }

  // Output channels from k on.
  void pack_rows(const typename GradWeightProblem<T>::Chunk& c, int64_t pixel, int64_t pixels, int64_t k,
                 Element* panel) const {
    const T* grad = p_.grad_at(c, c.n0) + pixel * g_.out_channels + k;
    const int64_t valid = std::min<int64_t>(g_.group_out() - k, panel_rows_);
    switch (valid < panel_rows_ ? 0 : panel_rows_) {
#define FASTCNN_PACK(rows) \
  case rows:               \
    return copy_rows<rows>(grad, pixels, panel);
      FASTCNN_PACK(4)
      FASTCNN_PACK(5)
      FASTCNN_PACK(6)
      FASTCNN_PACK(8)
      FASTCNN_PACK(10)
#undef FASTCNN_PACK
    }
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t m = 0; m < panel_rows_; ++m)
        panel[p * panel_rows_ + m] = m < valid ? grad[p * g_.out_channels + m] : T(0);
  }

  template <int kRows>
  void copy_rows(const T* grad, int64_t pixels, T* panel) const {
    for (int64_t p = 0; p < pixels; ++p) std::memcpy(panel + p * kRows, grad + p * g_.out_channels, sizeof(T) * kRows);
  }

  void widen_panel(const typename GradWeightProblem<T>::Chunk& c, int64_t k, Element* panel) const {
    const int64_t all = p_.pixels(c), first = p_.pixels(p_.first_half(c)), both = p_.pairs ? all - first : first;
    const int64_t valid = std::min<int64_t>(g_.group_out() - k, panel_rows_);
    const T* grad = p_.grad_at(c, c.n0) + k;
    const T* second = p_.pairs ? grad + first * g_.out_channels : nullptr;
    p_.kernel.conv2d_widen({grad, g_.out_channels, panel, panel_rows_, both, valid, panel_rows_, second, p_.pairs});
    p_.kernel.conv2d_widen({grad + both * g_.out_channels, g_.out_channels, panel + both * panel_rows_, panel_rows_,
                            first - both, valid, panel_rows_, nullptr, p_.pairs});
  }

  GradWeightProblem<T>& p_;
  const Conv2dGeometry& g_;
  std::vector<LaneBlock> blocks_;
  int64_t panel_count_, cost_, lane_stride_ = 0;
  int panel_rows_;
  bool copies_lanes_ = false;  // of the input, block by block
};

}  // namespace

int64_t grad_weight_tile_cost(int64_t operations, int vectors, int rows) {
  return operations + operations * (vectors + rows) / (2 * vectors * rows);
}

// Of a panel's padded rows and the lanes' registers, those of the least time.
template <typename T>
GradWeightTile choose_grad_weight_tile(const KernelSet<T>& kernel, int64_t runs, int64_t run_length, int64_t outputs) {
  GradWeightTile best{1, kPanelRows[0], 0};
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int max_vectors = kernel.max_vectors; max_vectors >= 1; --max_vectors) {
    const LaneBlocks run(run_length, kernel.width, max_vectors);
    const int vectors = static_cast<int>(ceil_div(run.vectors, run.count));
    for (const int rows : kPanelRows) {
      if (rows > kernel.rows_for(vectors)) continue;
      const int64_t operations = runs * run.vectors * ceil_div(outputs, rows) * rows;
      const int64_t cost = grad_weight_tile_cost(operations, vectors, rows);
      const int64_t time = cost + operations * kPixelLoads / (2 * vectors * rows);
      if (time < least) least = time, best = {max_vectors, rows, cost};
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
    const int64_t taps_cost = grad_weight_taps_cost(problem);
    const auto planar = planar_grad_weight_cost<T>(g);
    if (planar && 10 * *planar <= 9 * g.out_w * std::min(run.cost(), taps_cost)) {
      if (group == 0) backends::record_kernel("conv2d_planar_grad_weight");
      conv2d_planar_grad_weight<T>(g, view, grad, gradient);
    } else if (group_weights * static_cast<int64_t>(sizeof(Compute<T>)) <= kTapsMaxBytes &&
               10 * taps_cost <= 9 * run.cost()) {
      if (group == 0) backends::record_kernel("conv2d_grad_weight_taps");
      conv2d_grad_weight_taps(problem);
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
