// Launch geometry of average pooling.
#include "avg_pool2d.cuh"
#include "launch.cuh"

namespace fastcnn::cuda {

cudaError_t launch_avg_pool2d(const AvgPool2dArgs& args, cudaStream_t stream) {
  const Pool2dGeometry& g = args.geometry;
  return with_element(args.dtype, [&]<typename T>() {
    const Tiling tiling = tile_image(g.batch * g.out_h, g.out_w, g.channels, kVector<T>);
    const bool aligned = g.channels % kVector<T> == 0 && is_aligned(args.source) && is_aligned(args.result);
    return launch("avg_pool2d_kernel", avg_pool2d_kernel<T>, tiling.grid(), tiling.block(), stream, args, tiling,
                  aligned);
  });
}

cudaError_t launch_avg_pool2d_backward(const AvgPool2dArgs& args, cudaStream_t stream) {
  const Pool2dGeometry& g = args.geometry;
  return with_element(args.dtype, [&]<typename T>() {
    const Tiling tiling = tile_image(g.batch * g.in_h, g.in_w, g.channels, kVector<T>);
    const bool aligned = g.channels % kVector<T> == 0 && is_aligned(args.source) && is_aligned(args.result);
    return launch("avg_pool2d_backward_kernel", avg_pool2d_backward_kernel<T>, tiling.grid(), tiling.block(), stream,
                  args, tiling, aligned);
  });
}

cudaError_t launch_global_avg_pool2d(const GlobalAvgPool2dArgs& args, cudaStream_t stream) {
  return with_element(args.dtype, [&]<typename T>() {
    Tiling tiling = tile_rows(args.batch, ceil_div(args.channels, kVector<T>), /*rows_per_thread=*/1, kGlobalThreadsX);
    tiling.tile_rows = 1;  // an image a block, whose rows of threads share its pixels
    tiling.tiles_y = args.batch;
    const bool aligned = args.channels % kVector<T> == 0 && is_aligned(args.input) && is_aligned(args.output);
    return launch("global_avg_pool2d_kernel", global_avg_pool2d_kernel<T>, tiling.grid(), tiling.block(), stream, args,
                  tiling, aligned);
  });
}

}  // namespace fastcnn::cuda
