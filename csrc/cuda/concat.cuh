// concat on the GPU: a copy of runs. Device code only; the launch is in concat_launch.cu.
#pragma once
#include "concat_launch.h"

namespace fastcnn::cuda {

// One input for each blockIdx.y. Unit is as wide as concat_unit_bytes says; Index is 32 bits wide where the output
// allows it, as a division of 64 bits costs several times as much.
template <typename Unit, typename Index>
__global__ void __launch_bounds__(kConcatThreads) concat_kernel(const ConcatArgs args) {
  const ConcatInput& input = args.inputs[blockIdx.y];
  const Unit* in = reinterpret_cast<const Unit*>(input.data);
  Unit* out = reinterpret_cast<Unit*>(args.output + input.offset);
  const Index run = static_cast<Index>(input.run_bytes / sizeof(Unit));
  const Index row = static_cast<Index>(args.row_bytes / sizeof(Unit));
  const Index total = static_cast<Index>(args.rows) * run;
  const Index step = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step)
    out[i / run * row + i % run] = in[i];
}

}  // namespace fastcnn::cuda
