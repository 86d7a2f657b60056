// Launch geometry of conv2d's implicit GEMM.
#include "conv2d_gemm.cuh"
#include "conv2d_gemm_launch.h"
#include "conv2d_problem.h"

namespace fastcnn::cuda {
namespace {

constexpr int64_t kLeastSteps = 4;  // of a part's depth: below, starting and adding a part costs more than it brings
// Blocks that a split of an output or an input's gradient aims at: two on each of 128 multiprocessors. More would read
// no sooner, and write more to add up. By arithmetic: not measured.
constexpr int64_t kSplitBlocks = 256;

// The capability whose code runs on a device: the newest of its generation that was compiled up to its own, or what the
// driver makes of an older generation's PTX, which only the driver knows.
int code_capability(int device) {
#ifdef __CUDA_ARCH_LIST__
  int newest = 0;
  for (const int arch : {__CUDA_ARCH_LIST__})
    if (arch / 100 == device / 10 && arch <= device * 10) newest = std::max(newest, arch / 10);
  if (newest > 0) return newest;
  cudaFuncAttributes loaded{};
  const cudaError_t error = cudaFuncGetAttributes(&loaded, conv2d_gemm_fma_kernel<float, Conv2dPass::forward, kWide>);
  return error == cudaSuccess ? loaded.ptxVersion : device;  // a device without code: the launch says so
#else
  return device;
#endif
}

int64_t result_columns(const Conv2dArgs& args) {
  return args.pass == Conv2dPass::grad_input ? args.geometry.group_in() : args.geometry.group_out();
}

// bfloat16 by FMA, which only old GPUs need, has no narrow tiles: they would hold less than a vector for each thread.
bool is_narrow(const Conv2dArgs& args) {
  return result_columns(args) <= kNarrow && (args.dtype != Dtype::bf16 || conv2d_gemm_uses_wmma(args));
}

Conv2dPlan make_plan(const Conv2dArgs& args, int depth_step, bool alone) {
  const Conv2dGeometry& g = args.geometry;
  const PhaseSizes sizes = phase_sizes(args);
  const int64_t positions = g.batch * sizes.rows * sizes.columns;
  const bool grad_weight = args.pass == Conv2dPass::grad_weight;
  const int64_t rows = grad_weight ? g.kernel_h * g.kernel_w * g.group_in() : positions;
  const int64_t channels = args.pass == Conv2dPass::grad_input ? g.group_out() : g.group_in();
  const int64_t depth = grad_weight ? positions : sizes.taps * channels;
  Conv2dPlan plan{make_problem(args), 0, 0};
  Conv2dProblem& p = plan.problem;
  const int tile_m = args.dtype == Dtype::f64 ? kTileM<double> : kTileM<float>;
  p.tiles_m = static_cast<int>(ceil_div(rows, tile_m));
  p.tiles_n = static_cast<int>(ceil_div(result_columns(args), is_narrow(args) ? kNarrow : kWide));
  plan.blocks = g.groups * sizes.phases * p.tiles_m * p.tiles_n;

  int64_t wanted = 1;
  if (grad_weight) wanted = ceil_div(kPartBlocks, plan.blocks);
  if (!grad_weight && alone) wanted = kSplitBlocks / plan.blocks;
  const int64_t parts = count_parts(args, wanted, depth / (kLeastSteps * depth_step));
  p.part_depth = ceil_div(ceil_div(depth, parts), depth_step) * depth_step;
  p.depth_parts = static_cast<int>(ceil_div(depth, p.part_depth));
  plan.blocks *= p.depth_parts;
  plan.parts = grad_weight || p.depth_parts > 1 ? p.depth_parts : 0;
  return plan;
}

template <template <typename, Conv2dPass, int> typename Tile, typename T>
constexpr int kDepthOf = Tile<T, Conv2dPass::grad_weight, kWide>::kDepth;

int depth_of(const Conv2dArgs& args) {
  return with_element(args.dtype, [&]<typename T>() {
    if constexpr (std::is_same_v<T, double>)
      return kDepthOf<FmaTile, T>;
    else
      return conv2d_gemm_uses_wmma(args) ? kDepthOf<WmmaTile, T> : kDepthOf<FmaTile, T>;
  });
}

// What makes a plan, for launch_plans and count_plans_parts. An output or input's gradient is split where one launch
// makes it.
auto plan_maker(const Conv2dArgs& args) {
  const bool alone = !args.batch_invariant && args.geometry.batch <= launch_images(args.geometry);
  return [alone, depth_step = depth_of(args)](const Conv2dArgs& batch) { return make_plan(batch, depth_step, alone); };
}

using Kernel = void (*)(Conv2dProblem);

template <typename T, int kTileN>
Kernel fma_kernel(Conv2dPass pass) {
  return pass == Conv2dPass::forward      ? conv2d_gemm_fma_kernel<T, Conv2dPass::forward, kTileN>
         : pass == Conv2dPass::grad_input ? conv2d_gemm_fma_kernel<T, Conv2dPass::grad_input, kTileN>
                                          : conv2d_gemm_fma_kernel<T, Conv2dPass::grad_weight, kTileN>;
}
template <typename T, int kTileN>
Kernel wmma_kernel(Conv2dPass pass) {
  return pass == Conv2dPass::forward      ? conv2d_gemm_wmma_kernel<T, Conv2dPass::forward, kTileN>
         : pass == Conv2dPass::grad_input ? conv2d_gemm_wmma_kernel<T, Conv2dPass::grad_input, kTileN>
                                          : conv2d_gemm_wmma_kernel<T, Conv2dPass::grad_weight, kTileN>;
}

// Of float16 there is no FMA kernel and of float64 no wmma kernel: no GPU needs them.
template <int kTileN>
Kernel kernel_of(const Conv2dArgs& args) {
  const bool wmma = conv2d_gemm_uses_wmma(args);
  switch (args.dtype) {
    case Dtype::f64:
      return fma_kernel<double, kTileN>(args.pass);
    case Dtype::f16:
      return wmma_kernel<__half, kTileN>(args.pass);
    case Dtype::bf16:
      return wmma ? wmma_kernel<__nv_bfloat16, kTileN>(args.pass) : fma_kernel<__nv_bfloat16, kWide>(args.pass);
    default:
      return wmma ? wmma_kernel<float, kTileN>(args.pass) : fma_kernel<float, kTileN>(args.pass);
  }
}

}  // namespace

bool conv2d_gemm_uses_wmma(const Conv2dArgs& args) {
  if (args.dtype == Dtype::f16) return true;
  return (args.dtype == Dtype::bf16 || (args.dtype == Dtype::f32 && args.tf32)) &&
         code_capability(args.capability) >= 80;
}

int64_t conv2d_gemm_parts(const Conv2dArgs& args) { return count_plans_parts(args, plan_maker(args)); }

cudaError_t launch_conv2d_gemm(const Conv2dArgs& args, cudaStream_t stream) {
  const char* name = conv2d_gemm_uses_wmma(args) ? "conv2d_gemm_wmma_kernel" : "conv2d_gemm_fma_kernel";
  const Kernel kernel = is_narrow(args) ? kernel_of<kNarrow>(args) : kernel_of<kWide>(args);
  return launch_plans(args, plan_maker(args), [&](const Conv2dPlan& made) {
    return launch(name, kernel, static_cast<unsigned>(made.blocks), kGemmThreads, stream, made.problem);
  });
}

}  // namespace fastcnn::cuda
