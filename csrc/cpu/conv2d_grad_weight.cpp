// Driver of the weight gradient: chunk by chunk of the batch, the input is copied with its halo, the output's gradient
// packed into panels of a few channels, and threads share the tiles of the result, so that no sum crosses threads.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "conv2d.h"

namespace fastcnn::cpu {
namespace {

// Bytes of a chunk's input copy. Fixed, as the chunk decides the order of additions.
constexpr int64_t kChunkBytes = 768 * 1024;
constexpr int kPanelRows[] = {4, 5, 6, 8, 10};  // what conv2d_grad_weight has tiles for
constexpr int64_t kSumRows = 1024;              // rows summed by one task of channel_sums

// Neighbouring lanes of the result: (kernel column, input channel) where the copy has them side by side.
struct LaneBlock {
  int64_t in_offset, out_offset, lanes;
  int vectors;
};

template <typename T>
class GradWeightRun {
 public:
  GradWeightRun(const Conv2dGeometry& g, const ImageView<T>& input, const T* grad_output, T* grad_weight)
      : g_(g), kernel_(kernels().of<T>()), input_(input), grad_output_(grad_output), grad_weight_(grad_weight) {
    grid_.rows = g.out_h, grid_.cols = g.out_w, grid_.step_h = g.stride_h, grid_.step_w = g.stride_w;
    for (int64_t kh = 0; kh < g.kernel_h; ++kh)
      for (int64_t kw = 0; kw < g.kernel_w; ++kw)
        grid_.taps.push_back({kh * g.dilation_h - g.pad_h, kw * g.dilation_w - g.pad_w, 0});
    row_stride_ = input.depth * ((grid_.cols - 1) * grid_.step_w + grid_.max_w() - grid_.min_w() + 1);
    make_lane_blocks();
    choose_panels();

    const int64_t image_bytes = window_rows_size(grid_, grid_.rows, input.depth) * static_cast<int64_t>(sizeof(T));
    images_ = std::clamp<int64_t>(kChunkBytes / std::max<int64_t>(1, image_bytes), 1, g.batch);
    rows_ = images_ > 1 ? grid_.rows : ceil_div(grid_.rows, std::min(grid_.rows, ceil_div(image_bytes, kChunkBytes)));
    copy_size_ = window_rows_size(grid_, rows_, input.depth);
  }

  void run() {
    const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value);
    // The last lanes' registers may reach beyond the last window.
    at::Tensor copy = at::empty({images_ * copy_size_ + kernel_.width * kernel_.max_vectors}, options);
    at::Tensor panels = at::empty({panel_count_ * panel_rows_ * images_ * rows_ * grid_.cols}, options);
    copy_ = copy.mutable_data_ptr<T>();
    panels_ = panels.mutable_data_ptr<T>();
    for (int64_t n = 0; n < g_.batch; n += images_)
      for (int64_t i = 0; i < grid_.rows; i += rows_)
        run_chunk(n, std::min(n + images_, g_.batch), i, std::min(i + rows_, grid_.rows));
  }

 private:
  void make_lane_blocks() {
    const int64_t depth = input_.depth;
    const bool merged = g_.dilation_w == 1;
    const int64_t run_length = merged ? g_.kernel_w * depth : depth;
    const int64_t vectors = ceil_div(run_length, kernel_.width), count = ceil_div(vectors, kernel_.max_vectors);
    for (int64_t kh = 0; kh < g_.kernel_h; ++kh)
      for (int64_t kw = 0; kw < (merged ? 1 : g_.kernel_w); ++kw)
        for (int64_t b = 0; b < count; ++b) {
          const int64_t first = vectors * b / count, last = vectors * (b + 1) / count;
          const int64_t lane = first * kernel_.width;
          blocks_.push_back({kh * g_.dilation_h * row_stride_ + kw * g_.dilation_w * depth + lane,
                             (kh * g_.kernel_w + kw) * depth + lane,
                             std::min<int64_t>(run_length - lane, (last - first) * kernel_.width),
                             static_cast<int>(last - first)});
        }
  }

  void choose_panels() {
    int vectors = 1;
    for (const LaneBlock& b : blocks_) vectors = std::max(vectors, b.vectors);
    const int most = kernel_.rows_for(vectors);
    const int64_t even = ceil_div(g_.group_out(), ceil_div(g_.group_out(), most));
    panel_rows_ = most;
    for (const int rows : kPanelRows)
      if (rows >= even && rows < panel_rows_) {
        panel_rows_ = rows;
        break;
      }
    panel_count_ = ceil_div(g_.group_out(), panel_rows_);
  }

  void run_chunk(int64_t n0, int64_t n1, int64_t i0, int64_t i1) {
    const int64_t image_pixels = (i1 - i0) * grid_.cols, pixels = (n1 - n0) * image_pixels;
    // 1. The input with its halo, and the output's gradient in panels.
    at::parallel_for(n0, n1, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        copy_window_rows(input_, grid_, n, i0, i1, copy_ + (n - n0) * copy_size_);
        pack_panels(n, i0, i1, (n - n0) * image_pixels, pixels);
      }
    });
    offsets_.clear();
    for (int64_t n = n0; n < n1; ++n)
      for (int64_t i = 0; i < i1 - i0; ++i)
        for (int64_t j = 0; j < grid_.cols; ++j)
          offsets_.push_back((n - n0) * copy_size_ + i * grid_.step_h * row_stride_ + j * grid_.step_w * input_.depth);
    // 2. The tiles: a block of lanes stays in cache while the panels pass.
    const int64_t tiles = static_cast<int64_t>(blocks_.size()) * panel_count_;
    at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const LaneBlock& block = blocks_[t / panel_count_];
        const int64_t k = t % panel_count_ * panel_rows_;
        const int64_t row_stride = g_.kernel_h * g_.kernel_w * input_.depth;
        kernel_.conv2d_grad_weight({panels_ + k * pixels, copy_ + block.in_offset, offsets_.data(), pixels,
                                    grad_weight_ + k * row_stride + block.out_offset, row_stride, panel_rows_,
                                    static_cast<int>(std::min<int64_t>(panel_rows_, g_.group_out() - k)), block.vectors,
                                    block.lanes});
      }
    });
  }

  void pack_panels(int64_t n, int64_t i0, int64_t i1, int64_t first_pixel, int64_t pixels) const {
    const T* grad = grad_output_ + (n * grid_.rows + i0) * grid_.cols * g_.out_channels;
    const int64_t count = (i1 - i0) * grid_.cols, channels = g_.group_out();
    for (int64_t k = 0; k < channels; k += panel_rows_) {
      T* panel = panels_ + k * pixels + first_pixel * panel_rows_;
      const int64_t valid = std::min<int64_t>(panel_rows_, channels - k);
      for (int64_t p = 0; p < count; ++p) {
        for (int64_t r = 0; r < valid; ++r) panel[p * panel_rows_ + r] = grad[p * g_.out_channels + k + r];
        for (int64_t r = valid; r < panel_rows_; ++r) panel[p * panel_rows_ + r] = T(0);
      }
    }
  }

  const Conv2dGeometry& g_;
  const KernelSet<T>& kernel_;
  ImageView<T> input_;      // one group's channels
  const T* grad_output_;    // NHWC, at the group's first channel
  T* grad_weight_;          // [group_out, kernel_h, kernel_w, depth]
  WindowGrid grid_;
  std::vector<LaneBlock> blocks_;
  int64_t row_stride_, images_, rows_, copy_size_, panel_count_;
  int panel_rows_;
  std::vector<int64_t> offsets_;
  T* copy_ = nullptr;
  T* panels_ = nullptr;
};

}  // namespace

template <typename T>
void conv2d_grad_weight_direct(const Conv2dGeometry& g, const at::Tensor& grad_output, const at::Tensor& input,
                               at::Tensor& grad_weight) {
  if (g.batch == 0) return;
  const int64_t group_weights = g.group_out() * g.kernel_h * g.kernel_w * g.group_in();
  for (int64_t group = 0; group < g.groups; ++group) {
    ImageView<T> view = image_view<T>(input);
    view.data += group * g.group_in() * view.stride_c;
    view.depth = g.group_in();
    GradWeightRun<T>(g, view, grad_output.const_data_ptr<T>() + group * g.group_out(),
                     grad_weight.mutable_data_ptr<T>() + group * group_weights)
        .run();
  }
}

template <typename T>
at::Tensor channel_sums(const at::Tensor& values_nhwc) {
  const int64_t channels = values_nhwc.size(1);
  const int64_t rows = values_nhwc.numel() / std::max<int64_t>(1, channels);
  const int64_t parts = ceil_div(rows, kSumRows);
  at::Tensor partial = at::zeros({std::max<int64_t>(1, parts), channels}, at::kDouble);
  double* sums = partial.mutable_data_ptr<double>();
  const T* values = values_nhwc.const_data_ptr<T>();
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      kernels().of<T>().sum_rows({values + p * kSumRows * channels, std::min(kSumRows, rows - p * kSumRows), channels,
                                  channels, sums + p * channels});
  });
  at::Tensor result = at::empty({channels}, values_nhwc.options().memory_format(at::MemoryFormat::Contiguous));
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t p = 0; p < parts; ++p) sum += sums[p * channels + c];
    result.mutable_data_ptr<T>()[c] = static_cast<T>(sum);
  }
  return result;
}

template void conv2d_grad_weight_direct<float>(const Conv2dGeometry&, const at::Tensor&, const at::Tensor&, at::Tensor&);
template void conv2d_grad_weight_direct<double>(const Conv2dGeometry&, const at::Tensor&, const at::Tensor&,
                                                at::Tensor&);
template at::Tensor channel_sums<float>(const at::Tensor&);
template at::Tensor channel_sums<double>(const at::Tensor&);

}  // namespace fastcnn::cpu
