// The element types of tensors as the host code of an op names them to its kernels. Device code sees element.cuh.
#pragma once
#include <cstdint>

namespace fastcnn::cuda {

enum class Dtype : int32_t { f32, f64, f16, bf16 };

constexpr int64_t element_bytes(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

}  // namespace fastcnn::cuda
