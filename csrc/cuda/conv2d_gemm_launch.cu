// Launch geometry of conv2d's implicit GEMM.
#include "conv2d_gemm.cuh"
#include "conv2d_gemm_launch.h"
#include "conv2d_problem.h"

namespace fastcnn::cuda {
namespace {

constexpr int64_t kLeastSteps = 4;  // of a part's depth: below, starting and adding a part costs more than it brings

// The capability whose code runs on a device: the newest of its generation that was compiled up to its own, or what the
// driver makes of an older generation's PTX, which only the driver knows.
int code_capability(int device) {
#ifdef __CUDA_ARCH_LIST__
  int newest = 0;
  for (const int arch : {__CUDA_ARCH_LIST__})
    if (arch / 100 == device / 10 && arch <= device * 10) newest = std::max(newest, arch / 10);
  if (newest > 0) return newest;
  cudaFuncAttributes loaded{};
  const cudaError_t error = cudaFuncGetAttributes(&loaded, conv2d_gemm_fma_kernel<float, Conv2dPass::forward>);
  return error == cudaSuccess ? loaded.ptxVersion : device;  // a device without code: the launch says so
#else
  return device;
#endif
}

Conv2dPlan make_plan(const Conv2dArgs& args, int depth) {
  const Conv2dGeometry& g = args.geometry;
  const PhaseSizes sizes = phase_sizes(args);
  const int64_t positions = g.batch * sizes.rows * sizes.columns;
  const bool grad_weight = args.pass == Conv2dPass::grad_weight;
  const int64_t rows = grad_weight ? g.kernel_h * g.kernel_w * g.group_in() : positions;
  const int64_t columns = args.pass == Conv2dPass::grad_input ? g.group_in() : g.group_out();
  Conv2dPlan plan{make_problem(args), 0, 0};
  Conv2dProblem& p = plan.problem;
  const int tile_m = args.dtype == Dtype::f64 ? kTileM<double> : kTileM<float>;
  p.tiles_m = static_cast<int>(ceil_div(rows, tile_m)), p.tiles_n = static_cast<int>(ceil_div(columns, kTileN));
  plan.blocks = g.groups * sizes.phases * p.tiles_m * p.tiles_n;
  if (grad_weight) {
    const int64_t wanted = count_parts(args, plan.blocks, positions / (kLeastSteps * depth), 1);
    p.part_pixels = ceil_div(ceil_div(positions, wanted), depth) * depth;
    plan.parts = ceil_div(positions, p.part_pixels);
    plan.blocks *= plan.parts;
  }
  return plan;
}

template <template <typename, Conv2dPass> typename Tile, typename T>
constexpr int kDepthOf = Tile<T, Conv2dPass::grad_weight>::kDepth;

int depth_of(const Conv2dArgs& args) {
  return with_element(args.dtype, [&]<typename T>() {
    if constexpr (std::is_same_v<T, double>)
      return kDepthOf<FmaTile, T>;
    else
      return conv2d_gemm_uses_wmma(args) ? kDepthOf<WmmaTile, T> : kDepthOf<FmaTile, T>;
  });
}

using Kernel = void (*)(Conv2dProblem);

template <typename T>
Kernel fma_kernel(Conv2dPass pass) {
  return pass == Conv2dPass::forward      ? conv2d_gemm_fma_kernel<T, Conv2dPass::forward>
         : pass == Conv2dPass::grad_input ? conv2d_gemm_fma_kernel<T, Conv2dPass::grad_input>
                                          : conv2d_gemm_fma_kernel<T, Conv2dPass::grad_weight>;
}
template <typename T>
Kernel wmma_kernel(Conv2dPass pass) {
  return pass == Conv2dPass::forward      ? conv2d_gemm_wmma_kernel<T, Conv2dPass::forward>
         : pass == Conv2dPass::grad_input ? conv2d_gemm_wmma_kernel<T, Conv2dPass::grad_input>
                                          : conv2d_gemm_wmma_kernel<T, Conv2dPass::grad_weight>;
}

// Of float16 there is no FMA kernel and of float64 no wmma kernel: no GPU needs them.
Kernel kernel_of(const Conv2dArgs& args) {
  const bool wmma = conv2d_gemm_uses_wmma(args);
  switch (args.dtype) {
    case Dtype::f64:
      return fma_kernel<double>(args.pass);
    case Dtype::f16:
      return wmma_kernel<__half>(args.pass);
    case Dtype::bf16:
      return wmma ? wmma_kernel<__nv_bfloat16>(args.pass) : fma_kernel<__nv_bfloat16>(args.pass);
    default:
      return wmma ? wmma_kernel<float>(args.pass) : fma_kernel<float>(args.pass);
  }
}

}  // namespace

bool conv2d_gemm_uses_wmma(const Conv2dArgs& args) {
  if (args.dtype == Dtype::f16) return true;
  return (args.dtype == Dtype::bf16 || (args.dtype == Dtype::f32 && args.tf32)) &&
         code_capability(args.capability) >= 80;
}

int64_t conv2d_gemm_parts(const Conv2dArgs& args) {
  const int depth = depth_of(args);
  return count_plans_parts(args, [&](const Conv2dArgs& batch) { return make_plan(batch, depth); });
}

cudaError_t launch_conv2d_gemm(const Conv2dArgs& args, cudaStream_t stream) {
  const int depth = depth_of(args);
  const char* name = conv2d_gemm_uses_wmma(args) ? "conv2d_gemm_wmma_kernel" : "conv2d_gemm_fma_kernel";
  const auto plan = [&](const Conv2dArgs& batch) { return make_plan(batch, depth); };
  return launch_plans(args, plan, [&](const Conv2dPlan& made) {
    return launch(name, kernel_of(args), static_cast<unsigned>(made.blocks), kGemmThreads, stream, made.problem);
  });
}

}  // namespace fastcnn::cuda
