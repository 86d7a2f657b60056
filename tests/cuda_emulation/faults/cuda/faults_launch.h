// Kernels that break one rule each, or keep it at its edge, for test_emulator.py.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastcnn::cuda {

struct FaultsArgs {
  const float* input;  // [n]
  float* output;       // [n]
  unsigned blocks, threads;
  const char* kernel;  // its name
};

cudaError_t launch_faults(const FaultsArgs& args, cudaStream_t stream);

}  // namespace fastcnn::cuda
