#include "bit_mask.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/bitwise_left_shift.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/constant_pad_nd.h>

namespace fastcnn::bit_mask {
namespace {

at::Tensor bit_numbers(const at::Tensor& like) { return at::arange(8, like.options().dtype(at::kByte)); }

}  // namespace

at::Tensor pack(const at::Tensor& output) {
  const c10::SymInt channels = output.sym_size(1), bytes = (channels + 7) / 8;
  const at::Tensor passes = output.le(0).logical_not().movedim(1, -1).reshape_symint({-1, channels});
  const at::Tensor padded = at::constant_pad_nd_symint(passes.to(at::kByte), {0, bytes * 8 - channels});
  return at::bitwise_left_shift(padded.view_symint({-1, bytes, 8}), bit_numbers(output)).sum(-1, false, at::kByte);
}

at::Tensor unpack(const at::Tensor& mask, const at::Tensor& like) {
  std::vector<c10::SymInt> rows{like.sym_size(0)};
  for (int64_t d = 2; d < like.dim(); ++d) rows.push_back(like.sym_size(d));
  rows.push_back(mask.sym_size(1) * 8);
  const at::Tensor bits = at::bitwise_right_shift(mask.unsqueeze(-1), bit_numbers(mask)).bitwise_and(1);
  return bits.reshape_symint(rows).narrow_symint(-1, 0, like.sym_size(1)).movedim(-1, 1).to(like.scalar_type());
}

at::Tensor pass(const at::Tensor& mask, const at::Tensor& grad) {
  return grad.masked_fill(unpack(mask, grad).eq(0), 0);
}

}  // namespace fastcnn::bit_mask
