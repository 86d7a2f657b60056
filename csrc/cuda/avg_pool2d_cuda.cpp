// avg_pool2d and adaptive_avg_pool2d on CUDA tensors, as cpu/avg_pool2d.cpp.
#include <torch/library.h>

#include "../checks/checks.h"
#include "../common/backends.h"
#include "../fallback.h"
#include "avg_pool2d_launch.h"
#include "tensors.h"

namespace fastcnn::cuda {
namespace {

using at::IntArrayRef;
using at::Tensor;

// One window over the whole image.
bool is_global(const Pool2dGeometry& g) { return g.kernel_h == 0 && g.out_h == 1 && g.out_w == 1; }

// Adaptive windows are those of a geometry without a kernel.
Tensor forward(const Pool2dGeometry& g, const Tensor& input, bool count_include_pad, int64_t divisor) {
  const c10::cuda::CUDAGuard guard(input.device());
  const int64_t sizes[] = {g.batch, g.channels, g.out_h, g.out_w};
  const auto fill = [&](const Tensor& output) {
    const Tensor nhwc = input.contiguous(kNhwc);
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    if (is_global(g)) {
      backends::record_kernel("global_avg_pool2d");
      const GlobalAvgPool2dArgs args{
          dtype_of(input), g.batch, g.in_h * g.in_w, g.channels, nhwc.const_data_ptr(), output.mutable_data_ptr()};
      C10_CUDA_CHECK(launch_global_avg_pool2d(args, stream));
      return;
    }
    backends::record_kernel("avg_pool2d");
    const AvgPool2dArgs args{g,       dtype_of(input),       count_include_pad,
                             divisor, nhwc.const_data_ptr(), output.mutable_data_ptr()};
    C10_CUDA_CHECK(launch_avg_pool2d(args, stream));
  };
  return layout::filled<empty>(sizes, input.options(), input.suggest_memory_format(), fill);
}

Tensor backward(const Pool2dGeometry& g, const Tensor& grad_output, at::MemoryFormat format, bool count_include_pad,
                int64_t divisor) {
  const c10::cuda::CUDAGuard guard(grad_output.device());
  const int64_t sizes[] = {g.batch, g.channels, g.in_h, g.in_w};
  const auto fill = [&](const Tensor& grad_input) {
    backends::record_kernel("avg_pool2d_backward");
    const Tensor nhwc = grad_output.contiguous(kNhwc);
    const AvgPool2dArgs args{g,       dtype_of(grad_output), count_include_pad,
                             divisor, nhwc.const_data_ptr(), grad_input.mutable_data_ptr()};
    C10_CUDA_CHECK(launch_avg_pool2d_backward(args, c10::cuda::getCurrentCUDAStream()));
  };
  return layout::filled<empty>(sizes, grad_output.options(), format, fill);
}

Tensor avg_pool2d_cuda(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                       bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor_override) {
  const Pool2dGeometry g = checks::avg_pool2d(input, kernel_size, stride, padding, ceil_mode, divisor_override);
  if (!is_covered(input.scalar_type()))
    return fallback::avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
  return forward(g, input, count_include_pad, divisor_override.value_or(0));
}

Tensor avg_pool2d_backward_cuda(const Tensor& grad_output, IntArrayRef input_size, IntArrayRef kernel_size,
                                IntArrayRef stride, IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                                std::optional<int64_t> divisor_override, at::MemoryFormat memory_format) {
  const Pool2dGeometry g =
      checks::avg_pool2d_backward(grad_output, input_size, kernel_size, stride, padding, ceil_mode, divisor_override);
  return backward(g, grad_output, memory_format, count_include_pad, divisor_override.value_or(0));
}

Tensor adaptive_avg_pool2d_cuda(const Tensor& input, IntArrayRef output_size) {
  const Pool2dGeometry g = checks::adaptive_avg_pool2d(input, output_size);
  if (!is_covered(input.scalar_type())) return fallback::adaptive_avg_pool2d(input, output_size);
  return forward(g, input, /*count_include_pad=*/false, /*divisor=*/0);
}

Tensor adaptive_avg_pool2d_backward_cuda(const Tensor& grad_output, IntArrayRef input_size,
                                         at::MemoryFormat memory_format) {
  const Pool2dGeometry g = checks::adaptive_avg_pool2d_backward(grad_output, input_size);
  return backward(g, grad_output, memory_format, /*count_include_pad=*/false, /*divisor=*/0);
}

}  // namespace
}  // namespace fastcnn::cuda

TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  m.impl("avg_pool2d", fastcnn::cuda::avg_pool2d_cuda);
  m.impl("avg_pool2d_backward", fastcnn::cuda::avg_pool2d_backward_cuda);
  m.impl("adaptive_avg_pool2d", fastcnn::cuda::adaptive_avg_pool2d_cuda);
  m.impl("adaptive_avg_pool2d_backward", fastcnn::cuda::adaptive_avg_pool2d_backward_cuda);
}
