// Driver of the direct kernel: packs the weights, cuts the output into chunks whose input stays in cache, and hands
// chunk by block of lanes to the threads. A chunk's shape never changes a result: each output is one reduction.

#include <algorithm>
#include <type_traits>

#include "conv2d.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

// Input bytes of a chunk: half of a 1 MB second-level cache (EPYC 9004), the other half holds a block of weights.
constexpr int64_t kChunkBytes = 512 * 1024;
constexpr int64_t kPackGrain = 32 * 1024;  // elements that a thread packs at least
// Terms of one chain of additions: longer sums are split, as rounding errors grow with the chain.
constexpr int64_t kChainTerms = 512;

// The runs of a reduction, cut so that each chain of additions ends in a partial sum.
std::vector<Conv2dSegment> split_chains(const std::vector<Conv2dSegment>& runs) {
  std::vector<Conv2dSegment> segments;
  int64_t chain = 0;
  for (const Conv2dSegment& run : runs)
    for (int64_t done = 0; done < run.length;) {
      const int64_t length = std::min<int64_t>(run.length - done, kChainTerms - chain);
      chain = (chain + length) % kChainTerms;
      segments.push_back({run.offset + done, static_cast<int32_t>(length), chain == 0});
      done += length;
    }
  if (!segments.empty()) segments.back().flush = 0;
  return segments;
}

// A convolution of one tap is one over the pixels that it reads.
template <typename T>
GatherConv<T> without_gaps(GatherConv<T> p) {
  WindowGrid& g = p.grid;
  if (g.taps.size() != 1 || (g.step_h == 1 && g.step_w == 1) || g.min_h() < 0 || g.min_w() < 0 ||
      (g.rows - 1) * g.step_h + g.max_h() >= p.image.height || (g.cols - 1) * g.step_w + g.max_w() >= p.image.width)
    return p;
  p.image.data += g.min_h() * p.image.stride_h + g.min_w() * p.image.stride_w;
  p.image.height = g.rows, p.image.width = g.cols;
  p.image.stride_h *= g.step_h, p.image.stride_w *= g.step_w;
  g.step_h = g.step_w = 1, g.taps[0].h = g.taps[0].w = 0;
  return p;
}

// The reduction as runs of neighbouring elements, for rows `row_stride` and columns `depth`-or-more apart.
std::vector<Conv2dSegment> make_segments(const WindowGrid& grid, int64_t depth, int64_t row_stride, int64_t col_stride,
                                         int64_t origin) {
  std::vector<Conv2dSegment> runs;
  for (const Tap& t : grid.taps) {
    const int64_t offset = t.h * row_stride + t.w * col_stride - origin;
    if (!runs.empty() && runs.back().offset + runs.back().length == offset) {
      runs.back().length += static_cast<int32_t>(depth);
    } else {
      runs.push_back({offset, static_cast<int32_t>(depth), 0});
    }
  }
  return split_chains(runs);
}

template <typename T>
at::Tensor pack_weights(const GatherConv<T>& p, const LaneBlocks& blocks) {
  const auto& kernel = kernels().of<T>();
  const int64_t reduction = static_cast<int64_t>(p.grid.taps.size()) * ceil_div(p.image.depth, kernel.conv2d_pair);
  at::Tensor packed = empty({std::max<int64_t>(1, blocks.padded_lanes() * reduction)}, kComputeDtype<T>);
  auto* data = packed.mutable_data_ptr<Compute<T>>();
  std::vector<int64_t> tap_offsets;
  for (const Tap& t : p.grid.taps) tap_offsets.push_back(t.weight_offset);
  const int64_t block_size = std::max<int64_t>(1, packed.numel() / std::max<int64_t>(1, blocks.count));
  parallel_for(0, blocks.count, std::max<int64_t>(1, kPackGrain / block_size), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t lane = blocks.first_lane(b), padded = blocks.first_lane(b + 1) - lane;
      kernel.conv2d_pack({p.weight + lane * p.lane_stride, p.lane_stride, p.depth_stride, p.image.depth,
                          tap_offsets.data(), static_cast<int64_t>(tap_offsets.size()),
                          std::min(padded, p.lanes - lane), padded, data + lane * reduction, kernel.conv2d_pair == 2});
    }
  });
  return packed;
}

// How the output rows are cut: either several whole images a chunk, or some rows of one image.
struct Chunks {
  int64_t images, rows;  // in a chunk
  int64_t per_image;     // chunks in an image, where rows < all
  int64_t count;

  template <typename T>
  static Chunks plan(const GatherConv<T>& p, int64_t depth, int64_t threads) {
    const int64_t image_bytes = window_rows_size(p.grid, p.grid.rows, depth) * static_cast<int64_t>(sizeof(Compute<T>));
    const int64_t wanted = std::max<int64_t>(1, threads * 2);
    Chunks c{};
    c.images = std::clamp<int64_t>(kChunkBytes / std::max<int64_t>(1, image_bytes), 1,
                                   std::max<int64_t>(1, p.image.batch / wanted));
    c.rows = p.grid.rows;
    if (c.images == 1) {
      int64_t pieces = std::max(ceil_div(image_bytes, kChunkBytes), ceil_div(wanted, p.image.batch));
      // A chunk shorter than its halo would copy more than it computes.
      pieces = std::min(pieces, std::max<int64_t>(1, p.grid.rows * p.grid.cols / 64));
      c.rows = ceil_div(p.grid.rows, std::clamp<int64_t>(pieces, 1, p.grid.rows));
    }
    c.per_image = ceil_div(p.grid.rows, c.rows);
    c.count = c.images > 1 ? ceil_div(p.image.batch, c.images) : p.image.batch * c.per_image;
    return c;
  }
};

// The kernel's element is of the type that T is computed in, or a pair of T as wide as that. The input is copied where
// its elements are others, or where windows reach beyond the image.
template <typename T>
class DirectRun {
  using Element = Compute<T>;

 public:
  explicit DirectRun(const GatherConv<T>& p)
      : p_(without_gaps(p)),
        kernel_(kernels().of<T>()),
        blocks_(p.lanes, kernel_.width, kernel_.max_vectors),
        packed_(pack_weights(p, blocks_)),
        pair_(kernel_.conv2d_pair),
        depth_(ceil_div(p.image.depth, pair_)) {
    const WindowGrid& g = p_.grid;
    const ImageView<T>& image = p_.image;
    const bool inside = g.min_h() >= 0 && g.min_w() >= 0 && (g.rows - 1) * g.step_h + g.max_h() < image.height &&
                        (g.cols - 1) * g.step_w + g.max_w() < image.width;
    const bool as_it_is = pair_ == 1 ? std::is_same_v<T, Element>
                                     : (image.depth | image.stride_n | image.stride_h | image.stride_w) % pair_ == 0;
    copies_ = !inside || !as_it_is || (image.stride_c != 1 && image.depth > 1);
    if (copies_) {
      col_stride_ = depth_;
      row_stride_ = col_stride_ * ((g.cols - 1) * g.step_w + g.max_w() - g.min_w() + 1);
      segments_ = make_segments(g, depth_, row_stride_, col_stride_, g.min_h() * row_stride_ + g.min_w() * col_stride_);
    } else {
      col_stride_ = image.stride_w / pair_;
      row_stride_ = image.stride_h / pair_;
      segments_ = make_segments(g, depth_, row_stride_, col_stride_, 0);
    }
  }

  void run() {
    const int64_t threads = at::get_num_threads();
    const Chunks chunks = Chunks::plan(p_, depth_, threads);
    // Few chunks: the threads share a chunk's lanes, each one with an input copy of its own.
    const int64_t lane_parts = std::clamp<int64_t>(ceil_div(threads, chunks.count), 1, blocks_.count);
    const int64_t scratch_size = copies_ ? chunks.images * window_rows_size(p_.grid, chunks.rows, depth_) : 0;
    at::Tensor scratch = empty({threads, scratch_size}, kComputeDtype<T>);
    Element* scratch_data = scratch_size > 0 ? scratch.mutable_data_ptr<Element>() : nullptr;
    parallel_for(0, chunks.count * lane_parts, 1, [&](int64_t begin, int64_t end) {
      Element* buffer = scratch_data + at::get_thread_num() * scratch_size;
      std::vector<int64_t> in_offsets, out_offsets;
      for (int64_t task = begin; task < end; ++task) {
        const Element* input = prepare(chunks, task / lane_parts, buffer, in_offsets, out_offsets);
        const int64_t part = task % lane_parts;
        multiply(input, in_offsets, out_offsets, blocks_.count * part / lane_parts,
                 blocks_.count * (part + 1) / lane_parts);
      }
    });
  }

 private:
  // Copies a chunk's input where it has to be, and lists where each pixel's window and output begin.
  const Element* prepare(const Chunks& chunks, int64_t chunk, Element* buffer, std::vector<int64_t>& in_offsets,
                         std::vector<int64_t>& out_offsets) const {
    const WindowGrid& g = p_.grid;
    const int64_t n0 = chunks.images > 1 ? chunk * chunks.images : chunk / chunks.per_image;
    const int64_t n1 = std::min(n0 + chunks.images, p_.image.batch);
    const int64_t i0 = chunks.images > 1 ? 0 : chunk % chunks.per_image * chunks.rows;
    const int64_t i1 = std::min(i0 + chunks.rows, g.rows);
    in_offsets.clear();
    out_offsets.clear();
    const int64_t image_size = window_rows_size(g, i1 - i0, depth_);
    for (int64_t n = n0; n < n1; ++n) {
      if (copies_) copy(n, i0, i1, buffer + (n - n0) * image_size);
      for (int64_t i = i0; i < i1; ++i) {
        const int64_t in_row = copies_ ? (n - n0) * image_size + (i - i0) * g.step_h * row_stride_
                                       : n * (p_.image.stride_n / pair_) + i * g.step_h * row_stride_;
        const int64_t out_row = n * p_.out_stride_n + i * p_.out_stride_h;
        for (int64_t j = 0; j < g.cols; ++j) {
          in_offsets.push_back(in_row + j * g.step_w * col_stride_);
          out_offsets.push_back(out_row + j * p_.out_stride_w);
        }
      }
    }
    return copies_ ? buffer : reinterpret_cast<const Element*>(p_.image.data);
  }

  void copy(int64_t n, int64_t i0, int64_t i1, Element* buffer) const {
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (pair_ == 2)
        return copy_window_rows(p_.image, p_.grid, n, i0, i1, 2 * depth_, reinterpret_cast<BFloat16*>(buffer));
    }
    copy_window_rows(p_.image, p_.grid, n, i0, i1, depth_, buffer);
  }

  void multiply(const Element* input, const std::vector<int64_t>& in_offsets, const std::vector<int64_t>& out_offsets,
                int64_t first_block, int64_t last_block) const {
    const int64_t reduction = static_cast<int64_t>(p_.grid.taps.size()) * depth_;
    const Element* packed = packed_.template const_data_ptr<Element>();
    for (int64_t b = first_block; b < last_block; ++b) {
      const int64_t vector = blocks_.first_vector(b), lane = vector * blocks_.width;
      const int vectors = static_cast<int>(blocks_.first_vector(b + 1) - vector);
      kernel_.conv2d_direct({input, in_offsets.data(), p_.output + lane, out_offsets.data(),
                             static_cast<int64_t>(in_offsets.size()), segments_.data(),
                             static_cast<int64_t>(segments_.size()), packed + lane * reduction,
                             p_.bias != nullptr ? p_.bias + lane : nullptr, vectors,
                             std::min<int64_t>(p_.lanes - lane, vectors * blocks_.width), p_.relu});
    }
  }

  const GatherConv<T> p_;
  const KernelSet<T>& kernel_;
  LaneBlocks blocks_;
  at::Tensor packed_;
  int64_t pair_, depth_;  // neighbouring channels in an element, elements of a pixel
  std::vector<Conv2dSegment> segments_;
  bool copies_;
  int64_t row_stride_, col_stride_;
};

}  // namespace

std::vector<Conv2dSegment> chained_segments(int64_t length) {
  return split_chains({{0, static_cast<int32_t>(length), 0}});
}

template <typename T>
void conv2d_direct(const std::vector<GatherConv<T>>& problems) {
  for (const GatherConv<T>& p : problems)
    if (p.image.batch > 0 && p.grid.rows > 0 && p.grid.cols > 0) DirectRun<T>(p).run();
}

#define FASTCNN_INSTANTIATE(T) template void conv2d_direct<T>(const std::vector<GatherConv<T>>&);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
