// Driver of the direct kernel: packs the weights, cuts the output into chunks whose input stays in cache, and hands
// chunk by block of lanes to the threads. A chunk's shape changes no finite result: each output is one reduction.

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "conv2d.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

// Input bytes of a chunk: half of a 1 MB second-level cache (EPYC 9004), the other half holds a block of weights.
constexpr int64_t kChunkBytes = 512 * 1024;
constexpr int64_t kPackGrain = 32 * 1024;  // elements that a thread packs at least
// Terms of one chain of additions: longer sums are split, as rounding errors grow with the chain. With twice as many a
// 1x1 layer of 832 channels had 3 times the error of torch's on one thread; ResNet-50 takes 1.005 to 1.01 of the time.
constexpr int64_t kChainTerms = 256;
constexpr int64_t kManyChunks = 4;   // for a thread, from where on it does not matter whether one has one more
constexpr int64_t kManyPixels = 64;  // whose products take several times as long as packing their weights
constexpr int64_t kManyTiles = 4;    // of pixels, from where on threads share them in whole tiles
// The share of the work that has to be left when taps outside the image are left out.
constexpr double kLessWork = 0.95;
constexpr int64_t kMostListed = 1024;  // of a layer, whose places are kept from call to call: 16 KB
constexpr size_t kMostTaps = 128;      // of which groups are formed: there may be as many groups as taps

// The runs of a reduction, cut where its index passes a multiple of kChainTerms: each chain of additions there ends in
// a partial sum, and the sums are the same whether products with zeros are left out or not.
std::vector<Conv2dSegment> split_chains(const std::vector<Conv2dSegment>& runs) {
  std::vector<Conv2dSegment> segments;
  for (const Conv2dSegment& run : runs)
    for (int64_t done = 0; done < run.length;) {
      const int64_t weight = run.weight + done;
      const int64_t length = std::min<int64_t>(run.length - done, kChainTerms - weight % kChainTerms);
      segments.push_back({run.offset + done, weight, static_cast<int32_t>(length), 0});
      done += length;
    }
  for (size_t s = 1; s < segments.size(); ++s)
    segments[s - 1].flush = segments[s - 1].weight / kChainTerms != segments[s].weight / kChainTerms;
  return segments;
}

// A convolution of one tap is one over the pixels that it reads, of which `origin` is set to the first one's offset.
template <typename T>
GatherConv<T> without_gaps(GatherConv<T> p, int64_t& origin) {
  WindowGrid& g = p.grid;
  origin = 0;
  if (g.taps.size() != 1 || (g.step_h == 1 && g.step_w == 1) || !g.inside(p.image.height, p.image.width)) return p;
  origin = g.min_h() * p.image.stride_h + g.min_w() * p.image.stride_w;
  p.image.height = g.rows, p.image.width = g.cols;
  p.image.stride_h *= g.step_h, p.image.stride_w *= g.step_w;
  g.step_h = g.step_w = 1, g.taps[0].h = g.taps[0].w = 0;
  return p;
}

// Positions that share their taps, whose windows begin at the first of those, and the reduction over them.
struct TapGroup {
  std::vector<int64_t> rows, cols;
  int64_t first_h, first_w;
  std::vector<Conv2dSegment> segments;
  // What a column adds to the offset of its row's first window, output and residual.
  std::vector<int64_t> in_cols, out_cols, residual_cols;

  // For rows `row_stride` and columns `depth`-or-more apart.
  TapGroup(const WindowGrid& grid, const WindowClass& positions, int64_t depth, int64_t row_stride, int64_t col_stride)
      : rows(positions.rows), cols(positions.cols), first_h(0), first_w(0) {
    if (positions.taps.empty()) return;
    first_h = grid.taps[positions.taps[0]].h, first_w = grid.taps[positions.taps[0]].w;
    std::vector<Conv2dSegment> runs;
    for (const size_t t : positions.taps) {
      const int64_t offset = (grid.taps[t].h - first_h) * row_stride + (grid.taps[t].w - first_w) * col_stride;
      const int64_t weight = static_cast<int64_t>(t) * depth;
      if (!runs.empty() && runs.back().offset + runs.back().length == offset &&
          runs.back().weight + runs.back().length == weight) {
        runs.back().length += static_cast<int32_t>(depth);
      } else {
        runs.push_back({offset, weight, static_cast<int32_t>(depth), 0});
      }
    }
    segments = split_chains(runs);
  }
};

// All positions, with all taps.
WindowClass all_positions(const WindowGrid& grid) {
  WindowClass all{std::vector<int64_t>(grid.rows), std::vector<int64_t>(grid.cols),
                  std::vector<size_t>(grid.taps.size())};
  std::iota(all.rows.begin(), all.rows.end(), 0);
  std::iota(all.cols.begin(), all.cols.end(), 0);
  std::iota(all.taps.begin(), all.taps.end(), 0);
  return all;
}

// The weights in the order that the kernel reads them in, block after block of lanes.
template <typename T>
class WeightPacking {
  using Element = Compute<T>;

 public:
  WeightPacking(const GatherConv<T>& p, const LaneBlocks& blocks)
      : p_(p),
        blocks_(blocks),
        kernel_(kernels().of<T>()),
        reduction_(static_cast<int64_t>(p.grid.taps.size()) * ceil_div(p.image.depth, kernel_.conv2d_pair)) {
    for (const Tap& t : p.grid.taps) tap_offsets_.push_back(t.weight_offset);
  }

  int64_t block_size() const {
    return std::max<int64_t>(1, ceil_div(blocks_.vectors, blocks_.count) * blocks_.width * reduction_);
  }
  int64_t block_offset(int64_t block) const { return blocks_.first_lane(block) * reduction_; }

  void pack_block(int64_t block, Element* packed) const {
    const int64_t lane = blocks_.first_lane(block), padded = blocks_.first_lane(block + 1) - lane;
    kernel_.conv2d_pack({p_.weight + lane * p_.lane_stride, p_.lane_stride, p_.depth_stride, p_.image.depth,
                         tap_offsets_.data(), static_cast<int64_t>(tap_offsets_.size()),
                         std::min(padded, p_.lanes - lane), padded, packed, kernel_.conv2d_pair == 2});
  }
  at::Tensor pack() const {
    at::Tensor packed = empty({std::max<int64_t>(1, blocks_.padded_lanes() * reduction_)}, kComputeDtype<T>);
    Element* data = packed.mutable_data_ptr<Element>();
    parallel_for(0, blocks_.count, std::max<int64_t>(1, kPackGrain / block_size()), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) pack_block(b, data + block_offset(b));
    });
    return packed;
  }

 private:
  const GatherConv<T>& p_;
  const LaneBlocks& blocks_;
  const KernelSet<T>& kernel_;
  int64_t reduction_;
  std::vector<int64_t> tap_offsets_;
};

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
  // Chunks of whole images, equally many for each thread.
  static Chunks of_images(int64_t batch, int64_t rows, int64_t image_bytes, int64_t threads) {
    const int64_t most = std::clamp<int64_t>(kChunkBytes / std::max<int64_t>(1, image_bytes), 1, batch);
    const int64_t count = std::min(batch, ceil_div(ceil_div(batch, most), threads) * threads);
    const int64_t images = ceil_div(batch, count);
    return {images, rows, 1, ceil_div(batch, images)};
  }
  int64_t first_image(int64_t chunk) const { return images > 1 ? chunk * images : chunk / per_image; }
  int64_t first_row(int64_t chunk) const { return images > 1 ? 0 : chunk % per_image * rows; }
};

// The kernel's element is of the type that T is computed in, or a pair of T as wide as that. The input is copied where
// its elements are others, or where windows reach beyond the image: with a halo of zeros, or without one where maps are
// so small that leaving out the taps outside the image saves more than smaller groups of pixels cost.
template <typename T>
class DirectRun final : public PreparedConv<T> {
  using Element = Compute<T>;

 public:
  explicit DirectRun(const GatherConv<T>& p)
      : p_(without_gaps(p, origin_)),
        kernel_(kernels().of<T>()),
        blocks_(p.lanes, kernel_.width, kernel_.max_vectors),
        packing_(p_, blocks_),
        pair_(kernel_.conv2d_pair),
        depth_(ceil_div(p.image.depth, pair_)) {
    const WindowGrid& g = p_.grid;
    const ImageView<T>& image = p_.image;
    const bool inside = g.inside(image.height, image.width);
    const bool as_it_is = pair_ == 1 ? std::is_same_v<T, Element>
                                     : (image.depth | image.stride_n | image.stride_h | image.stride_w) % pair_ == 0;
    copies_ = !inside || !as_it_is || (image.stride_c != 1 && image.depth > 1);
    chunks_ = Chunks::plan(p_, depth_, num_threads());
    copied_ = g;
    if (inside || g.taps.size() > kMostTaps || !leave_out_taps()) {
      row_stride_ = copies_ ? depth_ * ((g.cols - 1) * g.step_w + g.max_w() - g.min_w() + 1) : image.stride_h / pair_;
      col_stride_ = copies_ ? depth_ : image.stride_w / pair_;
      image_size_ = copies_ ? window_rows_size(g, chunks_.rows, depth_) : image.stride_n / pair_;
      add_group(all_positions(g));
    }
    if (p_.problems * image.batch * g.rows * g.cols > kMostListed) return;
    listed_.resize(chunks_.count);
    for (int64_t chunk = 0; chunk < chunks_.count; ++chunk) list(chunk, listed_[chunk]);
  }

  void run(const GatherData<T>& data) const override {
    const int64_t threads = num_threads();
    const int64_t copy_size = copies_ ? chunks_.images * image_size_ : 0;
    // A block that one chunk alone uses is packed there, into a place that stays in cache.
    const bool packs_once = p_.packed == nullptr && chunks_.count == 1;
    // Few chunks, unequally many for each thread: the threads share a chunk's outputs, each one with an input copy of
    // its own. Where they would pack a block twice for a few pixels, they take whole blocks.
    const bool uneven = chunks_.count % threads != 0 && chunks_.count < kManyChunks * threads;
    const bool whole_blocks = packs_once && p_.image.batch * p_.grid.rows * p_.grid.cols < kManyPixels;
    const int64_t parts = !uneven ? 1 : whole_blocks ? std::min(threads, blocks_.count) : threads;
    const int64_t scratch_size = copy_size + (packs_once ? packing_.block_size() : 0);
    at::Tensor scratch;
    if (scratch_size > 0) scratch = empty({threads, scratch_size}, kComputeDtype<T>);
    Element* scratch_data = scratch_size > 0 ? scratch.mutable_data_ptr<Element>() : nullptr;
    const at::Tensor packed = packs_once || p_.packed != nullptr ? at::Tensor() : packing_.pack();
    const Element* packed_data = packed.defined() ? packed.const_data_ptr<Element>() : p_.packed;
    parallel_for(0, chunks_.count * parts, 1, [&](int64_t begin, int64_t end) {
      Element* buffer = scratch_data + at::get_thread_num() * scratch_size;
      Pixels own;
      const Element* input = nullptr;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t chunk = task / parts;
        if (task == begin || task % parts == 0) {
          input = prepare(data.image + origin_, chunk, buffer);
          if (listed_.empty()) list(chunk, own);
        }
        const Pixels& pixels = listed_.empty() ? own : listed_[chunk];
        const int64_t part = task % parts, unit = whole_blocks ? pixels.count() : 1;
        const Place first = place(pixels, part, parts, unit), last = place(pixels, part + 1, parts, unit);
        for (int64_t b = first.block; b < blocks_.count && b <= last.block; ++b) {
          const int64_t p0 = b == first.block ? first.pixel : 0, p1 = b == last.block ? last.pixel : pixels.count();
          if (p0 == p1) continue;
          if (packs_once) {
            packing_.pack_block(b, buffer + copy_size);
            multiply(data, input, pixels, p0, p1, b, buffer + copy_size, nullptr);
          } else {
            // The thread's next block, the first one where it goes on to another chunk.
            const bool more = b < last.block || task + 1 < end;
            const int64_t next = b + 1 < blocks_.count ? b + 1 : 0;
            multiply(data, input, pixels, p0, p1, b, packed_data + packing_.block_offset(b),
                     more ? packed_data + packing_.block_offset(next) : nullptr);
          }
        }
      }
    });
  }

 private:
  // Where a chunk's windows and outputs begin, group after group.
  struct Pixels {
    std::vector<int64_t> in_offsets, out_offsets, residual_offsets, group_ends;

    int64_t count() const { return static_cast<int64_t>(in_offsets.size()); }
    // And gets ready for at most so many.
    void clear(int64_t most, bool residual) {
      for (std::vector<int64_t>* v : {&in_offsets, &out_offsets, &residual_offsets, &group_ends}) v->clear();
      in_offsets.reserve(most), out_offsets.reserve(most);
      if (residual) residual_offsets.reserve(most);
    }
  };
  // Of a chunk's outputs, in the order of their lane blocks.
  struct Place {
    int64_t block, pixel;
  };

  // Where a part of equal parts begins: at a multiple of `unit` outputs, and between tiles, where there are many.
  Place place(const Pixels& pixels, int64_t part, int64_t parts, int64_t unit) const {
    const int64_t count = pixels.count(), at = blocks_.count * count / std::max<int64_t>(1, unit) * part / parts * unit;
    if (count == 0) return {part < parts ? 0 : blocks_.count, 0};
    const int vectors = static_cast<int>(ceil_div(blocks_.vectors, blocks_.count));
    const int64_t tile = kernel_.rows_for(vectors), pixel = at % count;
    return {at / count, count < kManyTiles * tile ? pixel : pixel / tile * tile};
  }

  // A row's offsets: thousands a call, which push_back takes several times as long for.
  static void append(std::vector<int64_t>& offsets, int64_t row, const std::vector<int64_t>& cols) {
    const size_t first = offsets.size();
    offsets.resize(first + cols.size());
    for (size_t j = 0; j < cols.size(); ++j) offsets[first + j] = row + cols[j];
  }

  // Whether to leave out the taps outside the image, and the plan for that.
  bool leave_out_taps() {
    const WindowGrid& g = p_.grid;
    const ImageView<T>& image = p_.image;
    // An odd number of cache lines: the same place of neighbouring images lies in different sets.
    const int64_t line = 64 / static_cast<int64_t>(sizeof(Element));
    const int64_t image_size = (ceil_div(image.height * image.width * depth_, line) | 1) * line;
    const Chunks chunks =
        Chunks::of_images(image.batch, g.rows, image_size * static_cast<int64_t>(sizeof(Element)), num_threads());
    const std::vector<WindowClass> classes = window_classes(g, image.height, image.width);
    int64_t work = 0;
    for (const WindowClass& c : classes)
      work += tile_work(chunks.images * static_cast<int64_t>(c.rows.size() * c.cols.size()), c.taps.size());
    const int64_t whole_work = tile_work(chunks.images * g.rows * g.cols, g.taps.size());
    const auto busy = [&](const Chunks& c) {
      return static_cast<double>(std::min<int64_t>(num_threads(), c.count * blocks_.count));
    };
    if (static_cast<double>(work) / busy(chunks) > kLessWork * static_cast<double>(whole_work) / busy(chunks_))
      return false;
    whole_image_ = true;
    copied_ = {image.height, image.width, 1, 1, {{0, 0, 0}}};
    chunks_ = chunks;
    row_stride_ = image.width * depth_, col_stride_ = depth_, image_size_ = image_size;
    for (const WindowClass& c : classes) add_group(c);
    return true;
  }

  void add_group(const WindowClass& positions) {
    TapGroup& group = groups_.emplace_back(p_.grid, positions, depth_, row_stride_, col_stride_);
    for (const int64_t j : group.cols) {
      group.in_cols.push_back(j * p_.grid.step_w * col_stride_);
      group.out_cols.push_back(j * p_.out_stride_w);
      if (p_.residual != nullptr) group.residual_cols.push_back(j * p_.residual_stride_w);
    }
  }

  // Multiplications by the taps' weights, and loads of these.
  int64_t tile_work(int64_t pixels, size_t taps) const {
    const int vectors = static_cast<int>(ceil_div(blocks_.vectors, blocks_.count));
    return static_cast<int64_t>(taps) * (pixels + ceil_div(pixels, kernel_.rows_for(vectors)));
  }

  // Images [n0, n1) and output rows [i0, i1) of these.
  struct Extent {
    int64_t n0, n1, i0, i1;
  };
  Extent extent(int64_t chunk) const {
    const int64_t n0 = chunks_.first_image(chunk), i0 = chunks_.first_row(chunk);
    return {n0, std::min(n0 + chunks_.images, p_.image.batch), i0, std::min(i0 + chunks_.rows, p_.grid.rows)};
  }

  // A chunk's input, copied where it has to be.
  const Element* prepare(const T* image, int64_t chunk, Element* buffer) const {
    if (!copies_) return reinterpret_cast<const Element*>(image);
    const auto [n0, n1, i0, i1] = extent(chunk);
    for (int64_t n = n0; n < n1; ++n)
      copy(image, n, i0, whole_image_ ? copied_.rows : i1, buffer + (n - n0) * image_size_);
    return buffer;
  }

  void list(int64_t chunk, Pixels& pixels) const {
    const WindowGrid& g = p_.grid;
    const auto [n0, n1, i0, i1] = extent(chunk);
    // The copy begins at the first row's and the first column's first tap.
    const int64_t top = copies_ ? i0 * copied_.step_h + copied_.min_h() : 0, left = copies_ ? copied_.min_w() : 0;
    pixels.clear((n1 - n0) * (i1 - i0) * g.cols, p_.residual != nullptr);
    for (const TapGroup& group : groups_) {
      for (int64_t n = n0; n < n1; ++n)
        for (const int64_t i : group.rows) {
          if (i < i0 || i >= i1) continue;
          append(pixels.in_offsets,
                 (copies_ ? n - n0 : n) * image_size_ + (i * g.step_h + group.first_h - top) * row_stride_ +
                     (group.first_w - left) * col_stride_,
                 group.in_cols);
          append(pixels.out_offsets, n * p_.out_stride_n + i * p_.out_stride_h, group.out_cols);
          if (p_.residual != nullptr)
            append(pixels.residual_offsets, n * p_.residual_stride_n + i * p_.residual_stride_h, group.residual_cols);
        }
      pixels.group_ends.push_back(static_cast<int64_t>(pixels.in_offsets.size()));
    }
  }

  void copy(const T* data, int64_t n, int64_t i0, int64_t i1, Element* buffer) const {
    ImageView<T> image = p_.image;
    image.data = data;
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (pair_ == 2)
        return copy_window_rows(image, copied_, n, i0, i1, 2 * depth_, reinterpret_cast<BFloat16*>(buffer));
    }
    copy_window_rows(image, copied_, n, i0, i1, depth_, buffer);
  }

  // The outputs of pixels [first, last) in a block of lanes; the weights of the next product are null, or at `next`.
  void multiply(const GatherData<T>& data, const Element* input, const Pixels& pixels, int64_t first, int64_t last,
                int64_t block, const Element* packed, const Element* next) const {
    const int64_t vector = blocks_.first_vector(block), lane = vector * blocks_.width;
    const int vectors = static_cast<int>(blocks_.first_vector(block + 1) - vector);
    int64_t group_begin = 0;
    for (size_t group = 0; group < groups_.size(); group_begin = pixels.group_ends[group++]) {
      const int64_t begin = std::max(first, group_begin), end = std::min(last, pixels.group_ends[group]);
      if (begin >= end) continue;
      const std::vector<Conv2dSegment>& segments = groups_[group].segments;
      kernel_.conv2d_direct({input, pixels.in_offsets.data() + begin, data.output + lane,
                             pixels.out_offsets.data() + begin, end - begin, segments.data(),
                             static_cast<int64_t>(segments.size()), packed,
                             p_.bias != nullptr ? p_.bias + lane : nullptr, vectors,
                             std::min<int64_t>(p_.lanes - lane, vectors * blocks_.width), p_.activation,
                             data.residual != nullptr ? data.residual + lane : nullptr,
                             pixels.residual_offsets.data() + begin, end == last ? next : nullptr});
    }
  }

  int64_t origin_;  // of the image that p_ reads
  const GatherConv<T> p_;
  const KernelSet<T>& kernel_;
  LaneBlocks blocks_;
  WeightPacking<T> packing_;
  int64_t pair_, depth_;               // neighbouring channels in an element, elements of a pixel
  bool copies_, whole_image_ = false;  // the input, as whole images without a halo
  WindowGrid copied_;                  // what of an image is copied
  Chunks chunks_;
  int64_t row_stride_, col_stride_, image_size_;  // of the copy, or of the input
  std::vector<TapGroup> groups_;
  std::vector<Pixels> listed_;  // of all chunks, or of none
};

}  // namespace

std::vector<Conv2dSegment> chained_segments(int64_t length) {
  return split_chains({{0, 0, static_cast<int32_t>(length), 0}});
}

template <typename T>
void conv2d_direct(const std::vector<GatherConv<T>>& problems) {
  for (const GatherConv<T>& p : problems)
    if (p.image.batch > 0 && p.grid.rows > 0 && p.grid.cols > 0)
      DirectRun<T>(p).run({p.image.data, p.output, p.residual});
}

template <typename T>
std::unique_ptr<const PreparedConv<T>> prepare_conv2d_direct(const GatherConv<T>& problem) {
  return std::make_unique<DirectRun<T>>(problem);
}

template <typename T>
at::Tensor conv2d_direct_weight(const GatherConv<T>& problem) {
  const KernelSet<T>& kernel = kernels().of<T>();
  const LaneBlocks blocks(problem.lanes, kernel.width, kernel.max_vectors);
  return WeightPacking<T>(problem, blocks).pack();
}

#define FASTCNN_INSTANTIATE(T)                                                                            \
  template void conv2d_direct<T>(const std::vector<GatherConv<T>>&);                                      \
  template std::unique_ptr<const PreparedConv<T>> prepare_conv2d_direct<T>(const GatherConv<T>& problem); \
  template at::Tensor conv2d_direct_weight<T>(const GatherConv<T>&);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
