// Launch geometry of max pooling.
#include "launch.cuh"
#include "max_pool2d.cuh"

namespace fastcnn::cuda {
namespace {

int64_t outputs(const Pool2dGeometry& g) { return g.batch * g.out_h * g.out_w * g.channels; }

}  // namespace

cudaError_t launch_max_pool2d(const MaxPool2dArgs& args, cudaStream_t stream) {
  const Pool2dGeometry& g = args.geometry;
  return with_element(args.dtype, [&]<typename T>() {
    const Tiling tiling = tile_image(g.batch * g.out_h, g.out_w, g.channels, kVector<T>);
    const bool aligned =
        g.channels % kVector<T> == 0 && is_aligned(args.input) && is_aligned(args.output) && is_aligned(args.offsets8);
    return launch("max_pool2d_kernel", max_pool2d_kernel<T>, tiling.grid(), tiling.block(), stream, args, tiling,
                  aligned);
  });
}

cudaError_t launch_max_pool2d_backward(const MaxPool2dBackwardArgs& args, cudaStream_t stream) {
  const Pool2dGeometry& g = args.geometry;
  return with_element(args.dtype, [&]<typename T>() {
    const Tiling tiling = tile_image(g.batch * g.in_h, g.in_w, g.channels, kVector<T>);
    const bool aligned = g.channels % kVector<T> == 0 && is_aligned(args.grad_output) && is_aligned(args.grad_input) &&
                         is_aligned(args.offsets8);
    return launch("max_pool2d_backward_kernel", max_pool2d_backward_kernel<T>, tiling.grid(), tiling.block(), stream,
                  args, tiling, aligned);
  });
}

cudaError_t launch_max_pool2d_indices(const MaxPool2dIndicesArgs& args, cudaStream_t stream) {
  const int64_t total = outputs(args.geometry);
  return launch("max_pool2d_indices_kernel", max_pool2d_indices_kernel, dim3(blocks_for(total, kBlockThreads)),
                dim3(kBlockThreads), stream, args, total);
}

cudaError_t launch_max_pool2d_gather(const MaxPool2dGatherArgs& args, cudaStream_t stream) {
  const int64_t total = outputs(args.geometry);
  const auto run = [&]<typename Bits>() {
    return launch("max_pool2d_gather_kernel", max_pool2d_gather_kernel<Bits>, dim3(blocks_for(total, kBlockThreads)),
                  dim3(kBlockThreads), stream, args, total);
  };
  switch (element_bytes(args.dtype)) {
    case 8:
      return run.template operator()<uint64_t>();
    case 4:
      return run.template operator()<uint32_t>();
    default:
      return run.template operator()<uint16_t>();
  }
}

}  // namespace fastcnn::cuda
