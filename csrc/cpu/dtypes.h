// Which dtypes the kernels cover, and the dtype they compute in: bfloat16 and float16 are widened to float32 and
// rounded once at the end.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace fastcnn::cpu {

inline bool is_covered(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
}

inline at::Tensor to_compute(const at::Tensor& t) { return t.scalar_type() == at::kFloat ? t : t.to(at::kFloat); }
inline std::optional<at::Tensor> to_compute(const std::optional<at::Tensor>& t) {
  return t.has_value() && t->defined() ? std::optional<at::Tensor>(to_compute(*t)) : std::nullopt;
}

}  // namespace fastcnn::cpu
