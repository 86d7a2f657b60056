// Launch geometry of the sums of conv2d's backward.
#include <algorithm>

#include "conv2d_sums.cuh"
#include "conv2d_sums_launch.h"
#include "launch.cuh"

namespace fastcnn::cuda {
namespace {

constexpr int64_t kLeastRows = 64;    // of a part
constexpr int64_t kMostParts = 1024;  // blocks that fill a large GPU a few times over

int64_t part_rows(const Conv2dGradOutputArgs& args) {
  return std::max(kLeastRows, (args.rows + kMostParts - 1) / kMostParts);
}

}  // namespace

int64_t conv2d_grad_output_parts(const Conv2dGradOutputArgs& args) {
  return (args.rows + part_rows(args) - 1) / part_rows(args);
}

cudaError_t launch_conv2d_grad_output(const Conv2dGradOutputArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  GradOutputProblem p{args, 1, 0, part_rows(args), false};
  const int64_t runs = (args.channels + kMaskLanes - 1) / kMaskLanes;
  while (p.block_vectors < std::min<int64_t>(runs, kSumsVectors)) p.block_vectors *= 2;
  p.tiles = static_cast<int>((runs + p.block_vectors - 1) / p.block_vectors);
  p.vectors =
      is_aligned(args.channels * element_bytes(args.dtype)) && is_aligned(args.grad_output) && is_aligned(args.grad);
  const unsigned blocks = static_cast<unsigned>(conv2d_grad_output_parts(args) * p.tiles);
  return with_element(args.dtype, [&]<typename T>() {
    return launch("conv2d_grad_output_kernel", conv2d_grad_output_kernel<T>, blocks, kSumsThreads, stream, p);
  });
}

cudaError_t launch_conv2d_sum_parts(const Conv2dSumPartsArgs& args, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>((args.size + kPartsColumns - 1) / kPartsColumns);
  return with_element(args.dtype, [&]<typename T>() {
    return launch("conv2d_sum_parts_kernel", conv2d_sum_parts_kernel<T>, blocks, kPartsThreads, stream, args);
  });
}

}  // namespace fastcnn::cuda
