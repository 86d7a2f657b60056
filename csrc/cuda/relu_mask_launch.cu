// Launch geometry of a ReLU's mask.
#include "launch.cuh"
#include "relu_mask.cuh"

namespace fastcnn::cuda {

cudaError_t launch_relu_mask(const ReluMaskArgs& args, cudaStream_t stream) {
  return with_element(args.dtype, [&]<typename T>() {
    const Tiling tiling = tile_rows(args.rows, ceil_div(args.channels, kUnit), /*rows_per_thread=*/1);
    const bool aligned = is_aligned(args.output) && is_aligned(args.channels * element_bytes(args.dtype));
    return launch("relu_mask_kernel", relu_mask_kernel<T>, tiling.grid(), tiling.block(), stream, args, tiling,
                  aligned);
  });
}

}  // namespace fastcnn::cuda
