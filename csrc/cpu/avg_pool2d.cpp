// avg_pool2d and adaptive_avg_pool2d on the CPU: the same kernels over different windows, and kernels of their own for
// one window over the whole image.
#include <torch/library.h>

#include "../checks/checks.h"
#include "../common/backends.h"
#include "../fallback.h"
#include "pool2d.h"

namespace fastcnn::cpu {
namespace {

using at::IntArrayRef;
using at::Tensor;

struct Windows {
  std::vector<PoolWindow> rows, cols;
};

Windows regular_windows(const Pool2dGeometry& g, bool count_include_pad, std::optional<int64_t> divisor_override) {
  Windows w{pool_windows(g.in_h, g.out_h, g.kernel_h, g.stride_h, g.pad_h, 1, count_include_pad),
            pool_windows(g.in_w, g.out_w, g.kernel_w, g.stride_w, g.pad_w, 1, count_include_pad)};
  if (divisor_override.has_value()) {
    for (PoolWindow& row : w.rows) row.divisor = *divisor_override;
    for (PoolWindow& col : w.cols) col.divisor = 1;
  }
  return w;
}

Windows adaptive_windows(const Pool2dGeometry& g) {
  return {cpu::adaptive_windows(g.in_h, g.out_h), cpu::adaptive_windows(g.in_w, g.out_w)};
}

bool is_global(const Pool2dGeometry& g) { return g.out_h == 1 && g.out_w == 1; }

// `windows` makes the tables once the result is allocated: a size that memory cannot hold must fail there.
template <typename MakeWindows>
Tensor forward(const Pool2dGeometry& g, const Tensor& input, const MakeWindows& windows) {
  backends::record_kernel("avg_pool2d");
  const int64_t sizes[] = {g.batch, g.channels, g.out_h, g.out_w};
  return filled(sizes, input.options(), input.suggest_memory_format(), [&](const Tensor& output) {
    const Tensor nhwc = input.contiguous(kNhwc);
    const Windows w = windows();
    with_element(output.scalar_type(), [&]<typename T>() {
      const AvgPool2dArgs<T> args{data_of<T>(nhwc),
                                  g.channels,
                                  mutable_data_of<T>(output),
                                  g.channels,
                                  w.rows.data(),
                                  w.cols.data(),
                                  g.channels,
                                  g.in_h,
                                  g.in_w,
                                  g.out_h,
                                  g.out_w,
                                  g.in_w / g.out_w * g.channels,
                                  0,
                                  0};
      over_rows(args, g.batch * g.out_h, g.in_h * g.in_w * g.channels / g.out_h, kernels().of<T>().avg_pool2d);
    });
  });
}

template <typename T>
void backward(const Pool2dGeometry& g, const Windows& w, const Tensor& grad_output, const Tensor& grad_input) {
  const T* grad = data_of<T>(grad_output);
  T* result = mutable_data_of<T>(grad_input);
  if (are_disjoint(w.rows, 1) && are_disjoint(w.cols, 1)) {
    backends::record_kernel("avg_pool2d_backward_disjoint");
    const Pool2dDisjointArgs<T> args{grad,          nullptr,    nullptr, result, w.rows.data(),
                                     w.cols.data(), g.channels, g.in_h,  g.in_w, g.out_h,
                                     g.out_w,       0,          0,       0};
    over_rows(args, g.batch * g.out_h, g.in_h * g.in_w * g.channels / g.out_h,
              kernels().of<T>().avg_pool2d_backward_disjoint);
    return;
  }
  backends::record_kernel("avg_pool2d_backward");
  const HitTable row_hits(w.rows, g.in_h, 1), col_hits(w.cols, g.in_w, 1);
  const AvgPool2dBackwardArgs<T> args{
      grad, result, row_hits.view(), col_hits.view(), g.channels, g.in_h, g.in_w, g.out_h, g.out_w, 0, 0};
  over_rows(args, g.batch * g.in_h, g.in_w * g.channels, kernels().of<T>().avg_pool2d_backward);
}

template <typename MakeWindows>
Tensor backward(const Pool2dGeometry& g, const Tensor& grad_output, at::MemoryFormat format,
                const MakeWindows& windows) {
  const int64_t sizes[] = {g.batch, g.channels, g.in_h, g.in_w};
  return filled(sizes, grad_output.options(), format, [&](const Tensor& grad_input) {
    const Tensor nhwc = grad_output.contiguous(kNhwc);
    const Windows w = windows();
    with_element(grad_input.scalar_type(), [&]<typename T>() { backward<T>(g, w, nhwc, grad_input); });
  });
}

Tensor global_forward(const Pool2dGeometry& g, const Tensor& input) {
  backends::record_kernel("global_avg_pool2d");
  const int64_t sizes[] = {g.batch, g.channels, 1, 1};
  return filled(sizes, input.options(), input.suggest_memory_format(), [&](const Tensor& output) {
    const Tensor nhwc = input.contiguous(kNhwc);
    with_element(output.scalar_type(), [&]<typename T>() {
      const GlobalAvgPool2dArgs<T> args{data_of<T>(nhwc), mutable_data_of<T>(output), g.channels, g.in_h, g.in_w, 0, 0};
      over_rows(args, g.batch, g.in_h * g.in_w * g.channels, kernels().of<T>().global_avg_pool2d);
    });
  });
}

Tensor global_backward(const Pool2dGeometry& g, const Tensor& grad_output, at::MemoryFormat format) {
  backends::record_kernel("global_avg_pool2d_backward");
  const int64_t sizes[] = {g.batch, g.channels, g.in_h, g.in_w};
  return filled(sizes, grad_output.options(), format, [&](const Tensor& grad_input) {
    const Tensor nhwc = grad_output.contiguous(kNhwc);
    with_element(grad_input.scalar_type(), [&]<typename T>() {
      const GlobalAvgPool2dArgs<T> args{
          data_of<T>(nhwc), mutable_data_of<T>(grad_input), g.channels, g.in_h, g.in_w, 0, 0};
      over_rows(args, g.batch, g.in_h * g.in_w * g.channels, kernels().of<T>().global_avg_pool2d_backward);
    });
  });
}

Tensor avg_pool2d_cpu(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                      bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor_override) {
  const Pool2dGeometry g = checks::avg_pool2d(input, kernel_size, stride, padding, ceil_mode, divisor_override);
  if (!is_covered(input.scalar_type()))
    return fallback::avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
  return forward(g, input, [&] { return regular_windows(g, count_include_pad, divisor_override); });
}

Tensor avg_pool2d_backward_cpu(const Tensor& grad_output, IntArrayRef input_size, IntArrayRef kernel_size,
                               IntArrayRef stride, IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                               std::optional<int64_t> divisor_override, at::MemoryFormat memory_format) {
  const Pool2dGeometry g =
      checks::avg_pool2d_backward(grad_output, input_size, kernel_size, stride, padding, ceil_mode, divisor_override);
  return backward(g, grad_output, memory_format,
                  [&] { return regular_windows(g, count_include_pad, divisor_override); });
}

Tensor adaptive_avg_pool2d_cpu(const Tensor& input, IntArrayRef output_size) {
  const Pool2dGeometry g = checks::adaptive_avg_pool2d(input, output_size);
  if (!is_covered(input.scalar_type())) return fallback::adaptive_avg_pool2d(input, output_size);
  if (is_global(g)) return global_forward(g, input);
  return forward(g, input, [&] { return adaptive_windows(g); });
}

Tensor adaptive_avg_pool2d_backward_cpu(const Tensor& grad_output, IntArrayRef input_size,
                                        at::MemoryFormat memory_format) {
  const Pool2dGeometry g = checks::adaptive_avg_pool2d_backward(grad_output, input_size);
  if (is_global(g)) return global_backward(g, grad_output, memory_format);
  return backward(g, grad_output, memory_format, [&] { return adaptive_windows(g); });
}

}  // namespace
}  // namespace fastcnn::cpu

TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("avg_pool2d", fastcnn::cpu::avg_pool2d_cpu);
  m.impl("avg_pool2d_backward", fastcnn::cpu::avg_pool2d_backward_cpu);
  m.impl("adaptive_avg_pool2d", fastcnn::cpu::adaptive_avg_pool2d_cpu);
  m.impl("adaptive_avg_pool2d_backward", fastcnn::cpu::adaptive_avg_pool2d_backward_cpu);
}
