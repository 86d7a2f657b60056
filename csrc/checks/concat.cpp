#include <ATen/WrapDimUtils.h>
#include <ATen/native/TypeProperties.h>

#include <optional>

#include "checks.h"

namespace fastcnn::checks {
namespace {

constexpr const char* kOp = "fastcnn::concat: ";

// channels_last where every tensor suggests it, as torch.cat chooses.
at::MemoryFormat common_format(at::TensorList tensors) {
  const at::MemoryFormat first = tensors[0].suggest_memory_format();
  for (const at::Tensor& t : tensors)
    if (t.suggest_memory_format() != first) return at::MemoryFormat::Contiguous;
  return first;
}

bool is_plain(const at::Tensor& t) {
  return t.layout() == at::kStrided && !at::isComplexType(t.scalar_type()) && !t.is_quantized() && !t.is_neg();
}

// Sets rows and inner: in memory order, the dimensions before `dim` make the rows, those after it lie within a run.
void set_runs(Concat& c) {
  const bool channels_last =
      c.memory_format == at::MemoryFormat::ChannelsLast || c.memory_format == at::MemoryFormat::ChannelsLast3d;
  const int64_t rank = static_cast<int64_t>(c.sizes.size());
  c.rows = c.inner = 1;
  for (int64_t d = 0; d < rank; ++d) {
    if (d == c.dim) continue;
    // channels_last puts dimension 1 behind all others.
    const bool before = channels_last ? c.dim == 1 || (d != 1 && d < c.dim) : d < c.dim;
    (before ? c.rows : c.inner) *= c.sizes[d];
  }
}

}  // namespace

Concat concat(at::TensorList tensors, int64_t dim) {
  TORCH_CHECK_VALUE(!tensors.empty(), kOp, "expected a non-empty list of Tensors");
  Concat c{};
  c.plain = true;
  const at::Tensor* model = nullptr;  // the first tensor that is not skipped
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& t = tensors[i];
    TORCH_CHECK(t.dim() > 0, kOp, "zero-dimensional tensor (at position ", i, ") cannot be concatenated");
    TORCH_CHECK(t.device() == tensors[0].device(), kOp, "Expected all tensors to be on the same device, but found ",
                tensors[0].device(), " and ", t.device());
    c.plain = c.plain && is_plain(t);
    c.skipped.push_back(t.dim() == 1 && t.size(0) == 0);
    if (!c.skipped.back() && model == nullptr) model = &t;
  }
  c.dtype = at::native::result_type(tensors);
  c.memory_format = common_format(tensors);
  const at::Tensor& first = model != nullptr ? *model : tensors[0];
  c.dim = model != nullptr ? at::maybe_wrap_dim(dim, first.dim()) : 0;
  c.sizes = first.sizes().vec();
  c.sizes[c.dim] = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (c.skipped[i]) continue;
    const at::Tensor& t = tensors[i];
    TORCH_CHECK(t.dim() == first.dim(), kOp, "Tensors must have same number of dimensions: got ", first.dim(), " and ",
                t.dim());
    for (int64_t d = 0; d < t.dim(); ++d)
      TORCH_CHECK(d == c.dim || t.size(d) == first.size(d), kOp, "Sizes of tensors must match except in dimension ",
                  c.dim, ". Expected size ", first.size(d), " but got size ", t.size(d), " for tensor number ", i,
                  " in the list.");
    c.sizes[c.dim] += t.size(c.dim);
  }
  set_runs(c);
  return c;
}

}  // namespace fastcnn::checks
