// Driver of the depthwise kernels: rows of the result over the threads, channels for the weight's gradient.
#include <ATen/Parallel.h>

#include "conv2d.h"

namespace fastcnn::cpu {
namespace {

constexpr int64_t kGrainElements = 16 * 1024;  // results a thread takes at least

template <typename T>
Conv2dDepthwiseArgs<T> make_args(const Conv2dGeometry& g, const at::Tensor& input, const at::Tensor& weight,
                                 const T* bias, bool relu, at::Tensor& output) {
  return {input.const_data_ptr<T>(),
          weight.const_data_ptr<T>(),
          bias,
          output.mutable_data_ptr<T>(),
          g.in_channels,
          g.in_h,
          g.in_w,
          g.out_h,
          g.out_w,
          g.kernel_h,
          g.kernel_w,
          g.stride_h,
          g.stride_w,
          g.pad_h,
          g.pad_w,
          g.dilation_h,
          g.dilation_w,
          0,
          0,
          relu};
}

template <typename T>
void over_rows(Conv2dDepthwiseArgs<T> args, int64_t rows, int64_t row_elements,
               void (*kernel)(const Conv2dDepthwiseArgs<T>&)) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, row_elements)),
                   [&](int64_t begin, int64_t end) {
                     Conv2dDepthwiseArgs<T> part = args;
                     part.row_begin = begin;
                     part.row_end = end;
                     kernel(part);
                   });
}

}  // namespace

template <typename T>
void depthwise_forward(const Conv2dGeometry& g, const at::Tensor& input, const at::Tensor& weight, const T* bias,
                       bool relu, at::Tensor& output) {
  over_rows(make_args<T>(g, input, weight, bias, relu, output), g.batch * g.out_h, g.out_w * g.in_channels,
            kernels().of<T>().conv2d_depthwise);
}

template <typename T>
void depthwise_grad_input(const Conv2dGeometry& g, const at::Tensor& grad_output, const at::Tensor& weight,
                          at::Tensor& grad_input) {
  over_rows(make_args<T>(g, grad_output, weight, nullptr, false, grad_input), g.batch * g.in_h, g.in_w * g.in_channels,
            kernels().of<T>().conv2d_depthwise_grad_input);
}

template <typename T>
void depthwise_grad_weight(const Conv2dGeometry& g, const at::Tensor& grad_output, const at::Tensor& input,
                           at::Tensor& grad_weight) {
  const auto& kernel = kernels().of<T>();
  const int64_t groups = ceil_div(g.in_channels, kernel.width);
  at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    kernel.conv2d_depthwise_grad_weight(
        {input.const_data_ptr<T>(), grad_output.const_data_ptr<T>(), grad_weight.mutable_data_ptr<T>(), g.batch,
         g.in_channels, g.in_h, g.in_w, g.out_h, g.out_w, g.kernel_h, g.kernel_w, g.stride_h, g.stride_w, g.pad_h,
         g.pad_w, g.dilation_h, g.dilation_w, begin * kernel.width, std::min(end * kernel.width, g.in_channels)});
  });
}

#define FASTCNN_INSTANTIATE(T)                                                                                     \
  template void depthwise_forward<T>(const Conv2dGeometry&, const at::Tensor&, const at::Tensor&, const T*, bool,  \
                                     at::Tensor&);                                                                 \
  template void depthwise_grad_input<T>(const Conv2dGeometry&, const at::Tensor&, const at::Tensor&, at::Tensor&); \
  template void depthwise_grad_weight<T>(const Conv2dGeometry&, const at::Tensor&, const at::Tensor&, at::Tensor&);
FASTCNN_INSTANTIATE(float)
FASTCNN_INSTANTIATE(double)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
