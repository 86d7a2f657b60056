// As much of CUDA as the kernels under test use, for g++: the threads of a grid run one after another. That shows what
// is read and written, and the arithmetic; not races, memory order or speed. Kernels with barriers need more than this.
#pragma once
#define __global__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct uint2 {
  unsigned x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

template <typename Kernel, typename Args>
void run_grid(Kernel kernel, dim3 grid, unsigned threads, const Args& args) {
  gridDim = grid;
  blockDim = {threads, 1, 1};
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(args);
}
