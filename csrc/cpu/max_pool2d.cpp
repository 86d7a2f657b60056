// max_pool2d on the CPU, and the ops around its offsets: which tap of each window won, kh * kernel_w + kw, a
// channels_last tensor of the output's shape.
#include <torch/library.h>

#include "../checks/checks.h"
#include "../common/backends.h"
#include "../fallback.h"
#include "memory.h"
#include "parallel.h"
#include "pool2d.h"

namespace fastcnn::cpu {
namespace {

using at::IntArrayRef;
using at::Tensor;

std::vector<int64_t> output_sizes(const Pool2dGeometry& g) { return {g.batch, g.channels, g.out_h, g.out_w}; }

std::vector<PoolWindow> row_windows(const Pool2dGeometry& g) {
  return pool_windows(g.in_h, g.out_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h, false);
}
std::vector<PoolWindow> col_windows(const Pool2dGeometry& g) {
  return pool_windows(g.in_w, g.out_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w, false);
}

// At most one of these is not null.
uint8_t* bytes_or_null(const Tensor& offsets) {
  return offsets.defined() && offsets.scalar_type() == at::kByte ? offsets.mutable_data_ptr<uint8_t>() : nullptr;
}
int32_t* ints_or_null(const Tensor& offsets) {
  return offsets.defined() && offsets.scalar_type() == at::kInt ? offsets.mutable_data_ptr<int32_t>() : nullptr;
}

template <typename T>
void forward(const Pool2dGeometry& g, const Tensor& input, const Tensor& output, const Tensor& offsets) {
  backends::record_kernel("max_pool2d");
  const auto rows = row_windows(g), cols = col_windows(g);
  const MaxPool2dArgs<T> args{data_of<T>(input),
                              g.channels,
                              mutable_data_of<T>(output),
                              g.channels,
                              bytes_or_null(offsets),
                              ints_or_null(offsets),
                              rows.data(),
                              cols.data(),
                              g.channels,
                              g.in_h,
                              g.in_w,
                              g.out_h,
                              g.out_w,
                              g.kernel_w,
                              g.dilation_h,
                              g.dilation_w,
                              g.stride_w * g.channels,
                              0,
                              0};
  over_rows(args, g.batch * g.out_h, g.in_h * g.in_w * g.channels / g.out_h, kernels().of<T>().max_pool2d);
}

// `offsets` are filled where they are defined.
Tensor pooled(const Pool2dGeometry& g, const Tensor& input, const Tensor& offsets) {
  return filled(output_sizes(g), input.options(), input.suggest_memory_format(), [&](const Tensor& output) {
    with_element(output.scalar_type(), [&]<typename T>() { forward<T>(g, input.contiguous(kNhwc), output, offsets); });
  });
}

Tensor max_pool2d_cpu(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding,
                      IntArrayRef dilation, bool ceil_mode) {
  const Pool2dGeometry g = checks::max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
  if (!is_covered(input.scalar_type()))
    return fallback::max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
  return pooled(g, input, Tensor());
}

std::tuple<Tensor, Tensor> max_pool2d_train_cpu(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride,
                                                IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  const Pool2dGeometry g = checks::max_pool2d_train(input, kernel_size, stride, padding, dilation, ceil_mode);
  const auto dtype = g.kernel_h * g.kernel_w <= 256 ? at::kByte : at::kInt;
  const Tensor offsets = empty(output_sizes(g), input.options().dtype(dtype), kNhwc);
  return {pooled(g, input, offsets), offsets};
}

template <typename T>
void backward(const Pool2dGeometry& g, const Tensor& grad_output, const Tensor& offsets, const Tensor& grad_input) {
  const auto rows = row_windows(g), cols = col_windows(g);
  const T* grad = data_of<T>(grad_output);
  T* result = mutable_data_of<T>(grad_input);
  if (are_disjoint(rows, g.dilation_h) && are_disjoint(cols, g.dilation_w)) {
    backends::record_kernel("max_pool2d_backward_disjoint");
    const Pool2dDisjointArgs<T> args{grad,
                                     bytes_or_null(offsets),
                                     ints_or_null(offsets),
                                     result,
                                     rows.data(),
                                     cols.data(),
                                     g.channels,
                                     g.in_h,
                                     g.in_w,
                                     g.out_h,
                                     g.out_w,
                                     g.kernel_w,
                                     0,
                                     0};
    over_rows(args, g.batch * g.out_h, g.in_h * g.in_w * g.channels / g.out_h,
              kernels().of<T>().max_pool2d_backward_disjoint);
    return;
  }
  backends::record_kernel("max_pool2d_backward");
  const HitTable row_hits(rows, g.in_h, g.dilation_h), col_hits(cols, g.in_w, g.dilation_w);
  const MaxPool2dBackwardArgs<T> args{grad,
                                      bytes_or_null(offsets),
                                      ints_or_null(offsets),
                                      result,
                                      row_hits.view(),
                                      col_hits.view(),
                                      g.channels,
                                      g.in_h,
                                      g.in_w,
                                      g.out_h,
                                      g.out_w,
                                      g.kernel_w,
                                      0,
                                      0};
  over_rows(args, g.batch * g.in_h, g.in_w * g.channels, kernels().of<T>().max_pool2d_backward);
}

Tensor max_pool2d_backward_cpu(const Tensor& grad_output, const Tensor& offsets, IntArrayRef input_size,
                               IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                               bool ceil_mode, at::MemoryFormat memory_format) {
  const Pool2dGeometry g =
      checks::max_pool2d_offsets(offsets, input_size, kernel_size, stride, padding, dilation, ceil_mode);
  checks::max_pool2d_grad_output(grad_output, offsets, g);
  const Tensor nhwc_offsets = offsets.contiguous(kNhwc);
  return filled(input_size, grad_output.options(), memory_format, [&](const Tensor& grad_input) {
    with_element(grad_input.scalar_type(),
                 [&]<typename T>() { backward<T>(g, grad_output.contiguous(kNhwc), nhwc_offsets, grad_input); });
  });
}

// Calls visit(i, n, h, w, c) for every element i of the dense NHWC offsets: (h, w) is the pixel that its offset names.
template <typename Offset, typename Visit>
void each_winner(const Pool2dGeometry& g, const Tensor& offsets, const Visit& visit) {
  const Offset* data = offsets.const_data_ptr<Offset>();
  const auto kernel_w = static_cast<uint32_t>(g.kernel_w);
  parallel_for(0, g.batch * g.out_h, 1 + 16 * 1024 / (g.out_w * g.channels), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t ow = 0; ow < g.out_w; ++ow)
        for (int64_t c = 0; c < g.channels; ++c) {
          const int64_t i = (row * g.out_w + ow) * g.channels + c;
          const auto offset = static_cast<uint32_t>(data[i]);
          const int64_t h = row % g.out_h * g.stride_h - g.pad_h + offset / kernel_w * g.dilation_h;
          const int64_t w = ow * g.stride_w - g.pad_w + offset % kernel_w * g.dilation_w;
          visit(i, row / g.out_h, h, w, c);
        }
  });
}
template <typename Visit>
void each_winner(const Pool2dGeometry& g, const Tensor& offsets, const Visit& visit) {
  if (offsets.scalar_type() == at::kByte) {
    each_winner<uint8_t>(g, offsets, visit);
  } else {
    each_winner<int32_t>(g, offsets, visit);
  }
}

// torch's indices, h * in_w + w.
Tensor max_pool2d_indices_cpu(const Tensor& offsets, IntArrayRef input_size, IntArrayRef kernel_size,
                              IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool ceil_mode,
                              at::MemoryFormat memory_format) {
  const Pool2dGeometry g =
      checks::max_pool2d_offsets(offsets, input_size, kernel_size, stride, padding, dilation, ceil_mode);
  backends::record_kernel("max_pool2d_indices");
  const Tensor nhwc = empty(offsets.sizes(), offsets.options().dtype(at::kLong), kNhwc);
  int64_t* indices = nhwc.mutable_data_ptr<int64_t>();
  each_winner(g, offsets.contiguous(kNhwc),
              [&](int64_t i, int64_t, int64_t h, int64_t w, int64_t) { indices[i] = h * g.in_w + w; });
  return in_format(nhwc, memory_format);
}

std::tuple<Tensor, Tensor> max_pool2d_with_indices_cpu(const Tensor& input, IntArrayRef kernel_size, IntArrayRef stride,
                                                       IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  const Pool2dGeometry g = checks::max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
  if (!is_covered(input.scalar_type()) || g.kernel_h * g.kernel_w > kMaxPool2dTaps)
    return fallback::max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode);
  const auto [output, offsets] = max_pool2d_train_cpu(input, kernel_size, stride, padding, dilation, ceil_mode);
  return {output, max_pool2d_indices_cpu(offsets, input.sizes(), kernel_size, stride, padding, dilation, ceil_mode,
                                         input.suggest_memory_format())};
}

// The transpose of max_pool2d_backward: what `values` [n, c, in_h, in_w] hold at each window's winner; zero for a
// window that lies outside the image.
Tensor max_pool2d_gather_cpu(const Tensor& values, const Tensor& offsets, IntArrayRef kernel_size, IntArrayRef stride,
                             IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  const Pool2dGeometry g =
      checks::max_pool2d_gather(values, offsets, kernel_size, stride, padding, dilation, ceil_mode);
  backends::record_kernel("max_pool2d_gather");
  const Tensor nhwc_offsets = offsets.contiguous(kNhwc);
  return filled(offsets.sizes(), values.options(), values.suggest_memory_format(), [&](const Tensor& output) {
    const Tensor nhwc = values.contiguous(kNhwc);
    with_element(output.scalar_type(), [&]<typename T>() {
      const T* source = data_of<T>(nhwc);
      T* result = mutable_data_of<T>(output);
      each_winner(g, nhwc_offsets, [&](int64_t i, int64_t n, int64_t h, int64_t w, int64_t c) {
        const bool inside = h >= 0 && h < g.in_h && w >= 0 && w < g.in_w;
        result[i] = inside ? source[((n * g.in_h + h) * g.in_w + w) * g.channels + c] : T{};
      });
    });
  });
}

}  // namespace
}  // namespace fastcnn::cpu

TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("max_pool2d", fastcnn::cpu::max_pool2d_cpu);
  m.impl("max_pool2d_with_indices", fastcnn::cpu::max_pool2d_with_indices_cpu);
  m.impl("max_pool2d_backward", fastcnn::cpu::max_pool2d_backward_cpu);
  m.impl("_max_pool2d_train", fastcnn::cpu::max_pool2d_train_cpu);
  m.impl("_max_pool2d_indices", fastcnn::cpu::max_pool2d_indices_cpu);
  m.impl("_max_pool2d_gather", fastcnn::cpu::max_pool2d_gather_cpu);
}
