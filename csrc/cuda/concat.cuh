// concat on the GPU: a copy of runs. Device code only; the launch is in concat_launch.cu.
#pragma once
#include "concat_launch.h"

namespace fastcnn::cuda {

constexpr int kConcatThreads = 256;  // of a block

struct ConcatProblem {
  char* output;
  int64_t rows, row_bytes, count;
  const ConcatInput* table;  // of the inputs, or null where `inputs` has them
  ConcatInput inputs[kMaxConcatInputs];
};

// One input for each blockIdx.y, as far as the grid reaches. Unit is as wide as all sizes and addresses allow; Index is
// 32 bits wide where these do, as a division of 64 bits costs several times as much.
template <typename Unit, typename Index>
__global__ void __launch_bounds__(kConcatThreads) concat_kernel(const ConcatProblem p) {
  const Index row = static_cast<Index>(p.row_bytes / sizeof(Unit));
  const Index step = static_cast<Index>(gridDim.x) * blockDim.x;
  for (int64_t k = blockIdx.y; k < p.count; k += gridDim.y) {
    ConcatInput input;
    if (p.table != nullptr) {
      input = p.table[k];
    } else {
      input = p.inputs[k];
    }
    const Unit* in = reinterpret_cast<const Unit*>(input.data);
    Unit* out = reinterpret_cast<Unit*>(p.output + input.offset);
    const Index run = static_cast<Index>(input.run_bytes / sizeof(Unit));
    const Index stride = static_cast<Index>(input.stride_bytes / sizeof(Unit));
    const Index total = static_cast<Index>(p.rows) * run;
    for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step)
      out[i / run * row + i % run] = in[i / run * stride + i % run];
  }
}

}  // namespace fastcnn::cuda
