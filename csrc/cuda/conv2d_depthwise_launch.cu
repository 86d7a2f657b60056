// Launch geometry of depthwise convolution.
#include "conv2d_depthwise.cuh"
#include "conv2d_depthwise_launch.h"
#include "conv2d_problem.h"

namespace fastcnn::cuda {
namespace {

constexpr int64_t kLeastPositions = 16;  // of a thread in a part of the weight's gradient

Conv2dPlan make_plan(const Conv2dArgs& args) {
  const Conv2dGeometry& g = args.geometry;
  const PhaseSizes sizes = phase_sizes(args);
  const int64_t positions = g.batch * sizes.rows * sizes.columns;
  const int64_t vectors = ceil_div(g.in_channels, 16 / element_bytes(args.dtype));
  Conv2dPlan plan{make_problem(args), 0, 0};
  Conv2dProblem& p = plan.problem;
  p.in_vectors = has_vectors(args, g.in_channels);
  for (p.block_vectors = 1; p.block_vectors < std::min<int64_t>(vectors, kDepthwiseVectors);) p.block_vectors *= 2;
  p.block_slices = kDepthwiseThreads / p.block_vectors;
  p.tiles_n = static_cast<int>(ceil_div(vectors, p.block_vectors));
  if (args.pass == Conv2dPass::grad_weight) {
    p.tiles_m = static_cast<int>(ceil_div(p.kernel_row, kDepthwiseGradTaps));
    const int64_t blocks = int64_t{p.tiles_n} * p.tiles_m;
    const int64_t wanted =
        count_parts(args, ceil_div(kPartBlocks, blocks), positions / (kLeastPositions * p.block_slices));
    p.part_depth = ceil_div(positions, wanted);
    plan.parts = ceil_div(positions, p.part_depth);
    plan.blocks = blocks * plan.parts;
  } else {
    p.tiles_m = static_cast<int>(ceil_div(positions, p.block_slices * kDepthwisePixels));
    plan.blocks = sizes.phases * p.tiles_m * p.tiles_n;
  }
  return plan;
}

}  // namespace

int64_t conv2d_depthwise_parts(const Conv2dArgs& args) { return count_plans_parts(args, make_plan); }

cudaError_t launch_conv2d_depthwise(const Conv2dArgs& args, cudaStream_t stream) {
  return launch_plans(args, make_plan, [&](const Conv2dPlan& plan) {
    return with_element(args.dtype, [&]<typename T>() {
      const unsigned blocks = static_cast<unsigned>(plan.blocks);
      return args.pass == Conv2dPass::grad_weight
                 ? launch("conv2d_depthwise_grad_weight_kernel", conv2d_depthwise_grad_weight_kernel<T>, blocks,
                          kDepthwiseThreads, stream, plan.problem)
                 : launch("conv2d_depthwise_kernel", conv2d_depthwise_kernel<T>, blocks, kDepthwiseThreads, stream,
                          plan.problem);
    });
  });
}

}  // namespace fastcnn::cuda
