// conv2d of as many groups as input and output channels.
#pragma once
#include "conv2d_args.h"

namespace fastcnn::cuda {

int64_t conv2d_depthwise_parts(const Conv2dArgs& args);
cudaError_t launch_conv2d_depthwise(const Conv2dArgs& args, cudaStream_t stream);

}  // namespace fastcnn::cuda
