// Neighbouring channels of one thread in the type that they are computed in, and sums over the threads of a block.
#pragma once
#include "element.cuh"
#include "tiling.h"

namespace fastcnn::cuda {

// Where a thread stands in a Tiling: its unit, and the first of its rows, which lie blockDim.y apart.
struct Place {
  int64_t unit;
  int64_t tile;                // of rows
  int64_t row_begin, row_end;  // the tile's
};
__device__ inline Place place_in(const Tiling& t) {
  const unsigned tiles_x = static_cast<unsigned>(t.tiles_x);
  const int64_t tile = blockIdx.x / tiles_x, begin = tile * t.tile_rows;
  const int64_t unit = static_cast<int64_t>(blockIdx.x % tiles_x) * blockDim.x + threadIdx.x;
  return {unit, tile, begin, begin + t.tile_rows < t.rows ? begin + t.tile_rows : t.rows};
}

// The first `count` of kLanes elements, and zeros. `aligned` as in load_vector.
template <int kLanes, typename T>
__device__ inline void load_lanes(const T* from, int64_t count, bool aligned, Compute<T> (&values)[kLanes]) {
  static_assert(kLanes % kVector<T> == 0);
#pragma unroll
  for (int v = 0; v < kLanes; v += kVector<T>) {
    const Vec<T> vec = load_vector(from + v, count - v, aligned);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) values[v + i] = to_compute(vec[i]);
  }
}

template <int kLanes, typename T>
__device__ inline void store_lanes(T* to, const Compute<T> (&values)[kLanes], int64_t count, bool aligned) {
#pragma unroll
  for (int v = 0; v < kLanes; v += kVector<T>) {
    Vec<T> vec;
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) vec[i] = from_compute<T>(values[v + i]);
    store_vector(to + v, vec, count - v, aligned);
  }
}

// Replaces each value by its sum over the threads of one threadIdx.x, in an order that depends on the block's size
// alone. All threads of the block come here; `shared` holds kLanes values a thread.
template <int kLanes, typename C>
__device__ inline void sum_over_y(C (&values)[kLanes], C* shared) {
  const int threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) shared[i * threads + thread] = values[i];
  int step = 1;
  while (step * 2 < static_cast<int>(blockDim.y)) step *= 2;
  for (; step > 0; step /= 2) {
    __syncthreads();
    const int other = threadIdx.y + step;
    if (static_cast<int>(threadIdx.y) < step && other < static_cast<int>(blockDim.y)) {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) shared[i * threads + thread] += shared[i * threads + thread + step * blockDim.x];
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kLanes; ++i) values[i] = shared[i * threads + threadIdx.x];
  __syncthreads();  // before `shared` is written again
}

}  // namespace fastcnn::cuda
