// Direct convolution for groups of few channels.
#pragma once
#include "conv2d_args.h"

namespace fastcnn::cuda {

// Chooses what a block takes, for the calls below. False where no image under its positions fits into its shared
// memory, as where kernels or dilations are large.
bool choose_conv2d_direct_tile(Conv2dArgs& args);

int64_t conv2d_direct_parts(const Conv2dArgs& args);
cudaError_t launch_conv2d_direct(const Conv2dArgs& args, cudaStream_t stream);

}  // namespace fastcnn::cuda
