// Driver of the weight gradient for a handful of output channels: planes of input and output gradient, a chunk of an
// image at a time. What a chunk is depends on the sizes alone, and so does the order of additions.

#include <algorithm>

#include "conv2d.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

constexpr int64_t kChunkBytes = 24 * 1024;     // of planes: what a first-level cache of 32 KB holds beside the sums
constexpr int64_t kLeastRows = 8;              // a chunk shorter than its halo would copy more than it computes
constexpr int64_t kChainRegisters = 128;       // terms of one chain of additions, as in the other weight gradients
constexpr int64_t kPartChunks = 4;             // chunks of a part at least
constexpr int64_t kMaxParts = 16;              // sums that run side by side and are added in order at the end
constexpr int64_t kMaxSumsBytes = 256 * 1024;  // of a part's

template <typename T>
class PlanarGradWeightRun {
  using Element = Compute<T>;

 public:
  PlanarGradWeightRun(const Conv2dGeometry& g, const ImageView<T>& input, const T* grad_output)
      : g_(g), kernel_(kernels().of<T>()), input_(input), grad_output_(grad_output) {
    halo_ = (g.kernel_h - 1) * g.dilation_h;
    row_stride_ = g.out_w + (g.kernel_w - 1) * g.dilation_w;
    grad_row_ = ceil_div(g.out_w, kernel_.width) * kernel_.width;
    const int64_t bytes = (input.depth * row_stride_ + g.group_out() * grad_row_) * int64_t{sizeof(Element)};
    const int64_t chain = kChainRegisters * kernel_.width / grad_row_;  // rows, at least one
    const int64_t most = std::clamp(kChunkBytes / bytes - halo_, std::min(kLeastRows, chain), chain);
    rows_ = ceil_div(g.out_h, ceil_div(g.out_h, std::min(most, g.out_h)));
    plane_ = (rows_ + halo_) * row_stride_ + kernel_.width;
    grad_plane_ = rows_ * grad_row_ + kernel_.width;
    for (int64_t kh = 0; kh < g.kernel_h; ++kh)
      for (int64_t kw = 0; kw < g.kernel_w; ++kw)
        for (int64_t c = 0; c < input.depth; ++c)
          offsets_.push_back(c * plane_ + kh * g.dilation_h * row_stride_ + kw * g.dilation_w);
  }

  void run(Element* grad_weight) {
    const int64_t per_image = ceil_div(g_.out_h, rows_), chunks = g_.batch * per_image;
    const int64_t parts = std::clamp<int64_t>(chunks / kPartChunks, 1, kMaxParts);
    const int64_t size = static_cast<int64_t>(offsets_.size()) * g_.group_out() * kernel_.width;
    const int64_t planes_size = input_.depth * plane_ + g_.group_out() * grad_plane_;
    const auto options = at::TensorOptions().dtype(kComputeDtype<T>);
    at::Tensor sums = empty({parts, size}, options), scratch = empty({at::get_num_threads(), planes_size}, options);
    Element* sums_data = sums.mutable_data_ptr<Element>();
    Element* scratch_data = scratch.mutable_data_ptr<Element>();
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      Element* planes = scratch_data + at::get_thread_num() * planes_size;
      for (int64_t part = begin; part < end; ++part) {
        std::fill_n(sums_data + part * size, size, Element(0));
        for (int64_t c = chunks * part / parts; c < chunks * (part + 1) / parts; ++c)
          add_chunk(c / per_image, c % per_image * rows_, planes, sums_data + part * size);
      }
    });
    kernel_.conv2d_add_parts({sums_data, size, parts, size, sums_data});
    add_lanes(sums_data, grad_weight);
  }

 private:
  void add_chunk(int64_t n, int64_t i, Element* planes, Element* sums) const {
    const int64_t rows = std::min(rows_, g_.out_h - i), channels = g_.group_out(), pixel = g_.out_channels;
    Element* grad = planes + input_.depth * plane_;
    copy_window_planes(input_, n, {i - g_.pad_h, -g_.pad_w, rows + halo_, plane_, row_stride_}, planes);
    kernel_.conv2d_planes({grad_output_ + (n * g_.out_h + i) * g_.out_w * pixel, g_.out_w * pixel, pixel, channels,
                           rows, g_.out_w, grad, grad_plane_, grad_row_, 0});
    kernel_.conv2d_planar_grad_weight({planes, offsets_.data(), static_cast<int64_t>(offsets_.size()), rows, g_.out_w,
                                       row_stride_, grad, grad_plane_, static_cast<int>(channels), sums});
  }

  // sums is [taps, input channels, output channels, width].
  void add_lanes(Element* sums, Element* grad_weight) const {
    const int64_t reduction = static_cast<int64_t>(offsets_.size());
    for (int64_t r = 0; r < reduction; ++r)
      for (int64_t k = 0; k < g_.group_out(); ++k, sums += kernel_.width) {
        for (int half = kernel_.width / 2; half > 0; half /= 2)
          for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
        grad_weight[k * reduction + r] = sums[0];
      }
  }

  const Conv2dGeometry& g_;
  const KernelSet<T>& kernel_;
  ImageView<T> input_;
  const T* grad_output_;
  int64_t halo_, row_stride_, grad_row_;
  int64_t rows_;  // of a chunk
  int64_t plane_, grad_plane_;
  std::vector<int64_t> offsets_;  // [kernel_h, kernel_w, group_in]
};

}  // namespace

template <typename T>
std::optional<int64_t> planar_grad_weight_cost(const Conv2dGeometry& g) {
  const auto& kernel = kernels().of<T>();
  const int64_t reduction = g.kernel_h * g.kernel_w * g.group_in(), channels = g.group_out();
  const int64_t registers = ceil_div(g.out_w, kernel.width);
  if (channels > kPlanarChannels || g.stride_h != 1 || g.stride_w != 1 || registers > kChainRegisters ||
      reduction * channels * kernel.width * int64_t{sizeof(Compute<T>)} > kMaxSumsBytes)
    return std::nullopt;
  const int accumulators = kernel.max_vectors * kernel.rows_for(kernel.max_vectors);
  const int taps = planar_grad_weight_taps(accumulators, static_cast<int>(channels));
  constexpr int64_t kPlanesCost = 4;  // of one register on its way into a plane
  return grad_weight_tile_cost(registers * reduction * channels, taps, static_cast<int>(channels)) +
         kPlanesCost * registers * (channels + g.group_in());
}

template <typename T>
void conv2d_planar_grad_weight(const Conv2dGeometry& g, const ImageView<T>& input, const T* grad_output,
                               Compute<T>* grad_weight) {
  PlanarGradWeightRun<T>(g, input, grad_output).run(grad_weight);
}

#define FASTCNN_INSTANTIATE(T)                                                       \
  template std::optional<int64_t> planar_grad_weight_cost<T>(const Conv2dGeometry&); \
  template void conv2d_planar_grad_weight<T>(const Conv2dGeometry&, const ImageView<T>&, const T*, Compute<T>*);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
