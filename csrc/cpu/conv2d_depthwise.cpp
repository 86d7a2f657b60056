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

}  // namespace

template <typename T>
void conv2d_depthwise(const std::vector<GatherConv<T>>& problems) {
  for (const GatherConv<T>& p : problems) {
    const std::vector<Conv2dDepthwiseRun> runs = make_runs(p.grid);
    const int64_t row_elements = std::max<int64_t>(1, p.grid.cols * p.lanes);
    parallel_for(0, p.image.batch * p.grid.rows, std::max<int64_t>(1, kGrainElements / row_elements),
                 [&](int64_t begin, int64_t end) {
                   kernels().of<T>().conv2d_depthwise({p.image.data,
                                                       p.image.stride_n,
                                                       p.image.stride_h,
                                                       p.image.stride_w,
                                                       p.image.height,
                                                       p.image.width,
                                                       p.weight,
                                                       p.bias,
                                                       p.output,
                                                       p.out_stride_n,
                                                       p.out_stride_h,
                                                       p.out_stride_w,
                                                       p.grid.rows,
                                                       p.grid.cols,
                                                       p.lanes,
                                                       p.grid.step_h,
                                                       p.grid.step_w,
                                                       runs.data(),
                                                       static_cast<int64_t>(runs.size()),
                                                       p.grid.min_w(),
                                                       p.grid.max_w(),
                                                       begin,
                                                       end,
                                                       p.activation});
                 });
  }
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

#define FASTCNN_INSTANTIATE(T)                                          \
  template void conv2d_depthwise<T>(const std::vector<GatherConv<T>>&); \
  template void depthwise_grad_weight<T>(const Conv2dGeometry&, const at::Tensor&, const at::Tensor&, at::Tensor&);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
