// What the CUDA host files share: tensors' dtypes as the kernels name them, and allocation on the GPU.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <optional>

#include "../common/layout.h"
#include "element.h"

namespace fastcnn::cuda {

using layout::kNhwc;

inline bool is_covered(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
}

inline Dtype dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble:
      return Dtype::f64;
    case at::kHalf:
      return Dtype::f16;
    case at::kBFloat16:
      return Dtype::bf16;
    default:
      TORCH_INTERNAL_ASSERT(t.scalar_type() == at::kFloat, "no kernels for ", t.scalar_type());
      return Dtype::f32;
  }
}

// As layout::Empty.
inline at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options,
                        std::optional<at::MemoryFormat> format = std::nullopt) {
  return at::empty(sizes, options, format);
}

}  // namespace fastcnn::cuda
