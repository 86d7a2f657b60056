// Driver of the depthwise kernels: rows of the result over the threads. The weight gradient sums parts of the rows,
// whose number depends on the sizes alone, and so does the order of additions.

#include <algorithm>

#include "conv2d.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

constexpr int64_t kGrainElements = 16 * 1024;  // results a thread takes at least
constexpr int64_t kGradParts = 16;             // sums that run side by side and are added in order at the end

std::vector<Conv2dDepthwiseRun> make_runs(const WindowGrid& grid) {
  std::vector<Conv2dDepthwiseRun> runs;
  for (const Tap& t : grid.taps) {
    if (!runs.empty()) {
      Conv2dDepthwiseRun& run = runs.back();
      const int64_t step = t.weight_offset - run.weight_offset;
      if (t.h == run.h && t.w == run.w + run.count && (run.count == 1 || step == run.count * run.weight_step)) {
        if (run.count == 1) run.weight_step = step;
        ++run.count;
        continue;
      }
    }
    runs.push_back({t.h, t.w, 1, t.weight_offset, 0});
  }
  return runs;
}

template <typename T>
class DepthwiseRun final : public PreparedConv<T> {
 public:
  explicit DepthwiseRun(const GatherConv<T>& p)
      : p_(p),
        kernel_(kernels().of<T>()),
        runs_(make_runs(p.grid)),
        first_w_(p.grid.min_w()),
        last_w_(p.grid.max_w()) {}

  void run(const GatherData<T>& data) const override {
    const ImageView<T>& image = p_.image;
    const WindowGrid& g = p_.grid;
    const int64_t row_elements = std::max<int64_t>(1, g.cols * p_.lanes);
    parallel_for(0, image.batch * g.rows, std::max<int64_t>(1, kGrainElements / row_elements),
                 [&](int64_t begin, int64_t end) {
                   kernel_.conv2d_depthwise({data.image,
                                             image.stride_n,
                                             image.stride_h,
                                             image.stride_w,
                                             image.height,
                                             image.width,
                                             p_.weight,
                                             p_.bias,
                                             data.output,
                                             p_.out_stride_n,
                                             p_.out_stride_h,
                                             p_.out_stride_w,
                                             g.rows,
                                             g.cols,
                                             p_.lanes,
                                             g.step_h,
                                             g.step_w,
                                             runs_.data(),
                                             static_cast<int64_t>(runs_.size()),
                                             first_w_,
                                             last_w_,
                                             begin,
                                             end,
                                             p_.activation});
                 });
  }

 private:
  const GatherConv<T> p_;
  const KernelSet<T>& kernel_;
  const std::vector<Conv2dDepthwiseRun> runs_;
  const int64_t first_w_, last_w_;
};

}  // namespace

template <typename T>
void conv2d_depthwise(const std::vector<GatherConv<T>>& problems) {
  for (const GatherConv<T>& p : problems) DepthwiseRun<T>(p).run({p.image.data, p.output, nullptr});
}

template <typename T>
std::unique_ptr<const PreparedConv<T>> prepare_conv2d_depthwise(const GatherConv<T>& problem) {
  return std::make_unique<DepthwiseRun<T>>(problem);
}

template <typename T>
void depthwise_grad_weight(const Conv2dGeometry& g, const at::Tensor& grad_output, const at::Tensor& input,
                           at::Tensor& grad_weight) {
  const int64_t rows = g.batch * g.out_h, size = g.kernel_h * g.kernel_w * g.in_channels;
  const int64_t row_elements = std::max<int64_t>(1, g.out_w * g.in_channels);
  const int64_t parts = std::clamp<int64_t>(rows * row_elements / kGrainElements, 1, std::min(rows, kGradParts));
  at::Tensor sums = zeros({parts, size}, kComputeDtype<T>);
  auto* sums_data = sums.mutable_data_ptr<Compute<T>>();
  parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      kernels().of<T>().conv2d_depthwise_grad_weight(
          {data_of<T>(input), data_of<T>(grad_output), sums_data + part * size, g.in_channels, g.in_h, g.in_w, g.out_h,
           g.out_w, g.kernel_h, g.kernel_w, g.stride_h, g.stride_w, g.pad_h, g.pad_w, g.dilation_h, g.dilation_w,
           rows * part / parts, rows * (part + 1) / parts});
  });
  auto* result = grad_weight.mutable_data_ptr<Compute<T>>();
  for (int64_t i = 0; i < size; ++i)
    for (int64_t part = 0; part < parts; ++part) result[i] += sums_data[part * size + i];
}

#define FASTCNN_INSTANTIATE(T)                                                                       \
  template void conv2d_depthwise<T>(const std::vector<GatherConv<T>>&);                              \
  template std::unique_ptr<const PreparedConv<T>> prepare_conv2d_depthwise<T>(const GatherConv<T>&); \
  template void depthwise_grad_weight<T>(const Conv2dGeometry&, const at::Tensor&, const at::Tensor&, at::Tensor&);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
