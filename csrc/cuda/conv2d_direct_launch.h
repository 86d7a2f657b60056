// Direct convolution for groups of few channels.
#pragma once
#include "conv2d_args.h"

namespace fastcnn::cuda {

// Whether the image under a block's positions fits into its shared memory: not where kernels or dilations are large.
bool conv2d_direct_applies(const Conv2dArgs& args);

int64_t conv2d_direct_parts(const Conv2dArgs& args);
cudaError_t launch_conv2d_direct(const Conv2dArgs& args, cudaStream_t stream);

}  // namespace fastcnn::cuda
