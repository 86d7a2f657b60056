// conv2d as an implicit GEMM: every geometry that conv2d_covers.
#pragma once
#include "conv2d_args.h"

namespace fastcnn::cuda {

// Whether the products are taken on tensor cores.
bool conv2d_gemm_uses_wmma(const Conv2dArgs& args);

int64_t conv2d_gemm_parts(const Conv2dArgs& args);
cudaError_t launch_conv2d_gemm(const Conv2dArgs& args, cudaStream_t stream);

}  // namespace fastcnn::cuda
