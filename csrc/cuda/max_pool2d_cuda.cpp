// max_pool2d on CUDA tensors, and the ops around its offsets, as cpu/max_pool2d.cpp.
#include <torch/library.h>

#include "../checks/checks.h"
#include "../common/backends.h"
#include "../fallback.h"
#include "max_pool2d_launch.h"
#include "tensors.h"

namespace fastcnn::cuda {
namespace {

using at::IntArrayRef;
using at::Tensor;

std::vector<int64_t> output_sizes(const Pool2dGeometry& g) { return {g.batch, g.channels, g.out_h, g.out_w}; }

// Of offsets in one of two types, the other one is null.
template <typename Offset>
Offset* offsets_or_null(const Tensor& offsets) {
  constexpr auto dtype = c10::CppTypeToScalarType<std::remove_const_t<Offset>>::value;
  if (!offsets.defined() || offsets.scalar_type() != dtype) return nullptr;
  if constexpr (std::is_const_v<Offset>) {
    return static_cast<Offset*>(offsets.const_data_ptr());
  } else {
    return static_cast<Offset*>(offsets.mutable_data_ptr());
  }
}

// `offsets` are filled where they are defined.
Tensor pooled(const Pool2dGeometry& g, const Tensor& input, const Tensor& offsets) {
  const auto fill = [&](const Tensor& output) {
    backends::record_kernel("max_pool2d");
    const Tensor nhwc = input.contiguous(kNhwc);
    const MaxPool2dArgs args{g,
                             dtype_of(input),
                             nhwc.const_data_ptr(),
                             output.mutable_data_ptr(),
                             offsets_or_null<uint8_t>(offsets),
                             offsets_or_null<int32_t>(offsets)};
    C10_CUDA_CHECK(launch_max_pool2d(args, c10::cuda::getCurrentCUDAStream()));
  };
  return layout::filled<empty>(output_sizes(g), input.options(), input.suggest_memory_format(), fill);
}

Tensor max_pool2d_cuda(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                       IntArrayRef dilation, bool ceil_mode) {
  const Pool2dGeometry g = checks::max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
  if (!is_covered(input.scalar_type()))
    return fallback::max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
  const c10::cuda::CUDAGuard guard(input.device());
  return pooled(g, input, Tensor());
}

std::tuple<Tensor, Tensor> max_pool2d_train_cuda(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride,
                                                 IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  const Pool2dGeometry g = checks::max_pool2d_train(input, kernel_size, stride, padding, dilation, ceil_mode);
  const c10::cuda::CUDAGuard guard(input.device());
  const auto dtype = g.kernel_h * g.kernel_w <= 256 ? at::kByte : at::kInt;
  const Tensor offsets = empty(output_sizes(g), input.options().dtype(dtype), kNhwc);
  return {pooled(g, input, offsets), offsets};
}

Tensor max_pool2d_backward_cuda(const Tensor& grad_output, const Tensor& offsets, IntArrayRef input_size,
                                IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                bool ceil_mode, at::MemoryFormat memory_format) {
  const Pool2dGeometry g =
      checks::max_pool2d_offsets(offsets, input_size, kernel_size, stride, padding, dilation, ceil_mode);
  checks::max_pool2d_grad_output(grad_output, offsets, g);
  const c10::cuda::CUDAGuard guard(grad_output.device());
  const auto fill = [&](const Tensor& grad_input) {
    backends::record_kernel("max_pool2d_backward");
    const Tensor nhwc = grad_output.contiguous(kNhwc), nhwc_offsets = offsets.contiguous(kNhwc);
    const MaxPool2dBackwardArgs args{g,
                                     dtype_of(nhwc),
                                     nhwc.const_data_ptr(),
                                     offsets_or_null<const uint8_t>(nhwc_offsets),
                                     offsets_or_null<const int32_t>(nhwc_offsets),
                                     grad_input.mutable_data_ptr()};
    C10_CUDA_CHECK(launch_max_pool2d_backward(args, c10::cuda::getCurrentCUDAStream()));
  };
  return layout::filled<empty>(input_size, grad_output.options(), memory_format, fill);
}

// torch's indices, h * in_w + w.
Tensor max_pool2d_indices_cuda(const Tensor& offsets, IntArrayRef input_size, IntArrayRef kernel_size,
                               IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool ceil_mode,
                               at::MemoryFormat memory_format) {
  const Pool2dGeometry g =
      checks::max_pool2d_offsets(offsets, input_size, kernel_size, stride, padding, dilation, ceil_mode);
  const c10::cuda::CUDAGuard guard(offsets.device());
  backends::record_kernel("max_pool2d_indices");
  const Tensor nhwc = empty(offsets.sizes(), offsets.options().dtype(at::kLong), kNhwc);
  if (nhwc.numel() > 0) {
    const Tensor nhwc_offsets = offsets.contiguous(kNhwc);
    const MaxPool2dIndicesArgs args{g, offsets_or_null<const uint8_t>(nhwc_offsets),
                                    offsets_or_null<const int32_t>(nhwc_offsets), nhwc.mutable_data_ptr<int64_t>()};
    C10_CUDA_CHECK(launch_max_pool2d_indices(args, c10::cuda::getCurrentCUDAStream()));
  }
  return layout::in_format<empty>(nhwc, memory_format);
}

std::tuple<Tensor, Tensor> max_pool2d_with_indices_cuda(const Tensor& input, IntArrayRef kernel_size,
                                                        IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                                        bool ceil_mode) {
  const Pool2dGeometry g = checks::max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
  if (!is_covered(input.scalar_type()) || g.kernel_h * g.kernel_w > kMaxPool2dTaps)
    return fallback::max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode);
  const auto [output, offsets] = max_pool2d_train_cuda(input, kernel_size, stride, padding, dilation, ceil_mode);
  return {output, max_pool2d_indices_cuda(offsets, input.sizes(), kernel_size, stride, padding, dilation, ceil_mode,
                                          input.suggest_memory_format())};
}

Tensor max_pool2d_gather_cuda(const Tensor& values, const Tensor& offsets, IntArrayRef kernel_size, IntArrayRef stride,
                              IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  const Pool2dGeometry g =
      checks::max_pool2d_gather(values, offsets, kernel_size, stride, padding, dilation, ceil_mode);
  const c10::cuda::CUDAGuard guard(values.device());
  const auto fill = [&](const Tensor& output) {
    backends::record_kernel("max_pool2d_gather");
    const Tensor nhwc = values.contiguous(kNhwc), nhwc_offsets = offsets.contiguous(kNhwc);
    const MaxPool2dGatherArgs args{g,
                                   dtype_of(nhwc),
                                   nhwc.const_data_ptr(),
                                   offsets_or_null<const uint8_t>(nhwc_offsets),
                                   offsets_or_null<const int32_t>(nhwc_offsets),
                                   output.mutable_data_ptr()};
    C10_CUDA_CHECK(launch_max_pool2d_gather(args, c10::cuda::getCurrentCUDAStream()));
  };
  return layout::filled<empty>(offsets.sizes(), values.options(), values.suggest_memory_format(), fill);
}

}  // namespace
}  // namespace fastcnn::cuda

TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  m.impl("max_pool2d", fastcnn::cuda::max_pool2d_cuda);
  m.impl("max_pool2d_with_indices", fastcnn::cuda::max_pool2d_with_indices_cuda);
  m.impl("max_pool2d_backward", fastcnn::cuda::max_pool2d_backward_cuda);
  m.impl("_max_pool2d_train", fastcnn::cuda::max_pool2d_train_cuda);
  m.impl("_max_pool2d_indices", fastcnn::cuda::max_pool2d_indices_cuda);
  m.impl("_max_pool2d_gather", fastcnn::cuda::max_pool2d_gather_cuda);
}
