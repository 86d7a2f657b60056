// Which dtypes the kernels cover, and tensors as the kernels' element types.
#pragma once
#include <ATen/core/Tensor.h>

#include "kernels/element.h"

namespace fastcnn::cpu {

inline bool is_covered(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
}

// Calls run<E>() with the element type of a covered dtype.
template <typename Run>
auto with_element(at::ScalarType dtype, const Run& run) {
  switch (dtype) {
    case at::kDouble:
      return run.template operator()<double>();
    case at::kBFloat16:
      return run.template operator()<BFloat16>();
    case at::kHalf:
      return run.template operator()<Float16>();
    default:
      TORCH_INTERNAL_ASSERT(dtype == at::kFloat, "no kernels for ", dtype);
      return run.template operator()<float>();
  }
}

// The dtype of a tensor of E, and the one that E is computed in.
template <typename E>
constexpr at::ScalarType kElementDtype = c10::CppTypeToScalarType<E>::value;
template <>
inline constexpr at::ScalarType kElementDtype<BFloat16> = at::kBFloat16;
template <>
inline constexpr at::ScalarType kElementDtype<Float16> = at::kHalf;
template <typename E>
constexpr at::ScalarType kComputeDtype = c10::CppTypeToScalarType<Compute<E>>::value;

template <typename E>
const E* data_of(const at::Tensor& t) {
  return static_cast<const E*>(t.const_data_ptr());
}
template <typename E>
E* mutable_data_of(const at::Tensor& t) {
  return static_cast<E*>(t.mutable_data_ptr());
}

#define FASTCNN_ELEMENTS(X) X(float) X(double) X(BFloat16) X(Float16)

}  // namespace fastcnn::cpu
