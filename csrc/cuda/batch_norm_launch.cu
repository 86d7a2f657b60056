// Launch geometry of batch norm.
#include <algorithm>

#include "batch_norm.cuh"
#include "launch.cuh"

namespace fastcnn::cuda {
namespace {

// Tiles of a reduction: with more, adding them up takes as long as making them. The emulated tests lower kMaxGrid.
constexpr int64_t kMaxTiles = std::min<int64_t>(512, 5 * kMaxGrid);

Tiling tile_units(const BatchNormGeometry& g, int64_t rows_per_thread) {
  return tile_rows(g.rows, ceil_div(g.channels, kUnit), rows_per_thread, kMaxThreadsX);
}

Tiling tile_reduction(const BatchNormGeometry& g) {
  const Tiling t = tile_units(g, kReduceRows);
  return t.tiles_y <= kMaxTiles ? t : tile_units(g, ceil_div(ceil_div(g.rows, kMaxTiles), t.threads_y));
}

// A block of some channels, its threads in y the tiles of rows.
Tiling tile_channels(const BatchNormGeometry& g) { return tile_rows(1, g.channels, 1, kReduceThreadsX); }

// Whether each row of channels starts at a multiple of 16 bytes.
bool is_aligned_rows(Dtype dtype, const void* rows, int64_t stride) {
  return rows == nullptr || (is_aligned(rows) && is_aligned(stride * element_bytes(dtype)));
}

// Calls run<C>() with the type that `dtype` is computed in.
template <typename Run>
cudaError_t with_compute(Dtype dtype, const Run& run) {
  return dtype == Dtype::f64 ? run.template operator()<double>() : run.template operator()<float>();
}

}  // namespace

int64_t batch_norm_tiles(const BatchNormGeometry& g) { return tile_reduction(g).tiles_y; }

cudaError_t launch_batch_norm_moments(const BatchNormMomentsArgs& args, cudaStream_t stream) {
  const BatchNormGeometry& g = args.geometry;
  const Tiling rows = tile_reduction(g), channels = tile_channels(g);
  const bool aligned = is_aligned_rows(args.dtype, args.input, args.stride);
  const cudaError_t error = with_element(args.dtype, [&]<typename T>() {
    return launch("batch_norm_stats_kernel", batch_norm_stats_kernel<T>, rows.grid(), rows.block(), stream, args, rows,
                  aligned);
  });
  if (error != cudaSuccess) return error;
  return with_compute(args.dtype, [&]<typename C>() {
    return launch("batch_norm_moments_kernel", batch_norm_moments_kernel<C>, channels.grid(), channels.block(), stream,
                  args, rows, channels);
  });
}

cudaError_t launch_batch_norm_apply(const BatchNormApplyArgs& args, cudaStream_t stream) {
  const BatchNormGeometry& g = args.geometry;
  const Tiling tiling = tile_units(g, kApplyRows);
  const bool aligned = is_aligned_rows(args.dtype, args.input, args.input_stride) &&
                       is_aligned_rows(args.dtype, args.residual, args.residual_stride) &&
                       is_aligned_rows(args.dtype, args.output, g.channels);
  return with_element(args.dtype, [&]<typename T>() {
    return launch("batch_norm_apply_kernel", batch_norm_apply_kernel<T>, tiling.grid(), tiling.block(), stream, args,
                  tiling, aligned);
  });
}

cudaError_t launch_batch_norm_grad_sums(const BatchNormGradSumsArgs& args, cudaStream_t stream) {
  const BatchNormGeometry& g = args.geometry;
  const Tiling tiling = tile_reduction(g);
  const bool aligned = is_aligned_rows(args.dtype, args.grad_output, args.grad_stride) &&
                       is_aligned_rows(args.dtype, args.input, args.input_stride);
  return with_element(args.dtype, [&]<typename T>() {
    return launch("batch_norm_grad_sums_kernel", batch_norm_grad_sums_kernel<T>, tiling.grid(), tiling.block(), stream,
                  args, tiling, aligned);
  });
}

cudaError_t launch_batch_norm_grad_factors(const BatchNormGradFactorsArgs& args, cudaStream_t stream) {
  const Tiling tiling = tile_channels(args.geometry);
  const int64_t tiles = args.partial != nullptr ? batch_norm_tiles(args.geometry) : 0;
  return with_compute(args.dtype, [&]<typename C>() {
    return launch("batch_norm_grad_factors_kernel", batch_norm_grad_factors_kernel<C>, tiling.grid(), tiling.block(),
                  stream, args, tiles, tiling);
  });
}

cudaError_t launch_batch_norm_grad_input(const BatchNormGradInputArgs& args, cudaStream_t stream) {
  const BatchNormGeometry& g = args.geometry;
  const Tiling tiling = tile_units(g, kApplyRows);
  const bool aligned = is_aligned_rows(args.dtype, args.grad_output, args.grad_stride) &&
                       is_aligned_rows(args.dtype, args.input, args.input_stride) &&
                       is_aligned_rows(args.dtype, args.grad_input, g.channels) &&
                       is_aligned_rows(args.dtype, args.grad_residual, g.channels) && is_aligned(args.factors);
  return with_element(args.dtype, [&]<typename T>() {
    return launch("batch_norm_grad_input_kernel", batch_norm_grad_input_kernel<T>, tiling.grid(), tiling.block(),
                  stream, args, tiling, aligned);
  });
}

cudaError_t launch_batch_norm_update(const BatchNormUpdateArgs& args, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(ceil_div(2 * args.channels, kBlockThreads)));
  return with_compute(args.wide ? Dtype::f64 : Dtype::f32, [&]<typename C>() {
    return launch("batch_norm_update_kernel", batch_norm_update_kernel<C>, blocks, dim3(kBlockThreads), stream, args);
  });
}

}  // namespace fastcnn::cuda
