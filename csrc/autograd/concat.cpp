// Autograd of concat: the gradient's slices are views, which an op may not return, so the node makes them itself.
#include <ATen/ops/real.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../ops.h"
#include "saved.h"

namespace fastcnn::autograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class ConcatFunction : public torch::autograd::Function<ConcatFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, at::TensorList tensors, int64_t dim) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor output = ops::concat(tensors, dim);
    const int64_t wrapped = dim < 0 ? dim + output.dim() : dim;
    std::vector<c10::SymInt> sizes;
    std::vector<int64_t> dtypes;
    for (const Tensor& t : tensors) {
      // -1 marks a tensor of shape [0], which concat skips.
      const bool skipped = t.dim() == 1 && t.sym_size(0) == 0;
      sizes.push_back(skipped ? c10::SymInt(-1) : t.sym_size(wrapped));
      dtypes.push_back(static_cast<int64_t>(t.scalar_type()));
    }
    ctx->saved_data["sizes"] = c10::SymIntArrayRef(sizes);
    ctx->saved_data["dtypes"] = dtypes;
    ctx->saved_data["dim"] = wrapped;
    return {output};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto sizes = ctx->saved_data["sizes"].toSymIntVector();
    const auto dtypes = ctx->saved_data["dtypes"].toIntVector();
    const int64_t dim = ctx->saved_data["dim"].toInt();
    variable_list result(sizes.size() + 1);
    if (!grads[0].defined()) return result;
    c10::SymInt start = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      const auto dtype = static_cast<at::ScalarType>(dtypes[i]);
      if (sizes[i] == -1) {
        if (ctx->needs_input_grad(i)) result[i] = grads[0].new_zeros({0}).to(dtype);
        continue;
      }
      if (ctx->needs_input_grad(i)) {
        Tensor slice = grads[0].narrow_symint(dim, start, sizes[i]);
        if (slice.is_complex() && !at::isComplexType(dtype)) slice = at::real(slice);
        result[i] = slice.to(dtype);
      }
      start = start + sizes[i];
    }
    return result;
  }
};

Tensor concat_autograd(at::TensorList tensors, int64_t dim) {
  bool any = false;
  for (const Tensor& t : tensors) any = any || needs_grad(t);
  if (!any) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::concat(tensors, dim);
  }
  return ConcatFunction::apply(tensors, dim)[0];
}

}  // namespace
}  // namespace fastcnn::autograd

TORCH_LIBRARY_IMPL(fastcnn, Autograd, m) { m.impl("concat", fastcnn::autograd::concat_autograd); }
