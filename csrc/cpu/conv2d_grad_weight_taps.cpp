// Driver of the weight gradient for few input channels: lanes are output channels.

#include <algorithm>

#include "conv2d_grad_weight.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

// Bytes of a chunk, input copy and output gradient: a fraction of a second-level cache, as many chunks run side by
// side.
constexpr int64_t kTapsChunkBytes = 128 * 1024;
constexpr int64_t kTapsParts = 16;        // sums that run side by side and are added in order at the end
constexpr int64_t kSumGrain = 64 * 1024;  // elements that a thread adds up at least

// The sums of a fixed number of parts of the batch, each one in a copy of the result.
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

}  // namespace

template <typename T>
int64_t grad_weight_taps_cost(const GradWeightProblem<T>& p) {
  const LaneBlocks lanes(p.g.group_out(), p.kernel.width, p.kernel.max_vectors);
  const int vectors = static_cast<int>(ceil_div(lanes.vectors, lanes.count));
  return grad_weight_tile_cost(lanes.vectors * p.g.kernel_h * p.g.kernel_w * p.input.depth, vectors,
                               p.kernel.rows_for(vectors));
}

template <typename T>
void conv2d_grad_weight_taps(GradWeightProblem<T>& problem) {
  GradWeightTapsRun<T>(problem).run();
}

#define FASTCNN_INSTANTIATE(T)                                            \
  template int64_t grad_weight_taps_cost<T>(const GradWeightProblem<T>&); \
  template void conv2d_grad_weight_taps<T>(GradWeightProblem<T>&);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
