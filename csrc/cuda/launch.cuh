// The only place where a kernel is launched. Under g++ the emulator of tests/cuda_emulation takes the same kernel,
// geometry and arguments instead, so what the launchers choose is what the tests run.
#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#ifndef __CUDACC__
#include "emulation.h"
#endif

namespace fastcnn::cuda {

// Where sizes decide between two code paths, the emulated tests lower the bound, so that small tensors take both.
#ifndef FASTCNN_MAX_SMALL_INDEX
#define FASTCNN_MAX_SMALL_INDEX (1 << 30)
#endif
#ifndef FASTCNN_MAX_GRID
#define FASTCNN_MAX_GRID (1 << 20)
#endif
constexpr int64_t kMaxSmallIndex = FASTCNN_MAX_SMALL_INDEX;  // an index below this, plus a grid's step, fits 32 bits
constexpr int64_t kMaxGrid = FASTCNN_MAX_GRID;               // blocks in x: the kernels' loops take any number

// Blocks that give each of their threads `per_thread` of the items, as far as kMaxGrid allows.
inline unsigned blocks_for(int64_t items, int64_t threads, int64_t per_thread = 1) {
  const int64_t per_block = threads * per_thread;
  return static_cast<unsigned>(std::clamp<int64_t>((items + per_block - 1) / per_block, 1, kMaxGrid));
}

// Starts `kernel` and tells whether the launch was accepted. `name` is the kernel's, for those who record launches.
template <typename... Params, typename... Args>
cudaError_t launch([[maybe_unused]] const char* name, void (*kernel)(Params...), dim3 grid, dim3 block,
                   [[maybe_unused]] cudaStream_t stream, const Args&... args) {
#ifdef __CUDACC__
  kernel<<<grid, block, 0, stream>>>(args...);
  return cudaGetLastError();
#else
  return emulation::run(name, kernel, grid, block, args...);
#endif
}

}  // namespace fastcnn::cuda
