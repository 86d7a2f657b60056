// What both gradients of a convolution and its bias share: grad_output through a fused ReLU, and its sums, in one pass.

#include <algorithm>

#include "../common/backends.h"
#include "../common/layout.h"
#include "conv2d.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

constexpr int64_t kPartRows = 1024;  // rows of channels that one task sums

}  // namespace

template <typename T>
std::tuple<at::Tensor, at::Tensor> conv2d_grad_output(const at::Tensor& grad_output, const at::Tensor& activated,
                                                      bool sums) {
  const int64_t channels = grad_output.size(1), rows = grad_output.numel() / std::max<int64_t>(1, channels);
  const std::optional<int64_t> apart = layout::row_stride(grad_output.movedim(1, -1));
  const at::Tensor source = apart ? grad_output : grad_output.contiguous(layout::kNhwc);
  const int64_t grad_stride = apart.value_or(channels);
  const bool copies = activated.defined() || grad_stride != channels;
  if (!copies && !sums) return {source, at::Tensor()};
  backends::record_kernel("conv2d_grad_output");
  const at::Tensor mask = activated.defined() ? activated.contiguous() : activated;
  const int64_t mask_stride = ceil_div(channels, 8);
  const at::Tensor result = copies ? empty(source.sizes(), source.options(), layout::kNhwc) : source;
  const int64_t parts = ceil_div(rows, kPartRows);
  const at::Tensor partial = zeros({sums ? parts : 0, channels}, at::kDouble);
  const T* grad_data = data_of<T>(source);
  const uint8_t* mask_data = mask.defined() ? mask.const_data_ptr<uint8_t>() : nullptr;
  T* result_data = copies ? mutable_data_of<T>(result) : nullptr;
  double* partial_data = sums ? partial.mutable_data_ptr<double>() : nullptr;
  const KernelSet<T>& kernel = kernels().of<T>();
  parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t row = p * kPartRows, at = row * channels;
      kernel.conv2d_grad_output({grad_data + row * grad_stride, grad_stride,
                                 mask_data != nullptr ? mask_data + row * mask_stride : nullptr, mask_stride,
                                 result_data != nullptr ? result_data + at : nullptr, std::min(kPartRows, rows - row),
                                 channels, sums ? partial_data + p * channels : nullptr});
    }
  });
  if (!sums) return {result, at::Tensor()};
  at::Tensor total = empty({channels}, kComputeDtype<T>);
  auto* total_data = total.mutable_data_ptr<Compute<T>>();
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t p = 0; p < parts; ++p) sum += partial_data[p * channels + c];
    total_data[c] = static_cast<Compute<T>>(sum);
  }
  return {result, total};
}

#define FASTCNN_INSTANTIATE(T) \
  template std::tuple<at::Tensor, at::Tensor> conv2d_grad_output<T>(const at::Tensor&, const at::Tensor&, bool);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
