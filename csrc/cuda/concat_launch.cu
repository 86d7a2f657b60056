// Launch geometry of concat.
#include <algorithm>

#include "concat.cuh"

namespace fastcnn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kUnitsPerThread = 4;       // chosen without a measurement; the loop in the kernel takes any number
constexpr int64_t kMaxBlocks = 1 << 20;      // keeps the 32-bit loop step from overflowing
constexpr int64_t kMaxSmallUnits = 1 << 30;  // an index below this, plus a step, fits 32 bits

template <typename Unit>
void launch(const ConcatArgs& args, cudaStream_t stream) {
  int64_t longest = 0;
  for (int i = 0; i < args.count; ++i) longest = std::max(longest, args.inputs[i].run_bytes);
  const int64_t units = args.rows * longest / static_cast<int64_t>(sizeof(Unit));
  const int64_t blocks = std::min((units + kThreads * kUnitsPerThread - 1) / (kThreads * kUnitsPerThread), kMaxBlocks);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(args.count));
  if (args.rows * args.row_bytes / static_cast<int64_t>(sizeof(Unit)) <= kMaxSmallUnits) {
    concat_kernel<Unit, uint32_t><<<grid, kThreads, 0, stream>>>(args);
  } else {
    concat_kernel<Unit, int64_t><<<grid, kThreads, 0, stream>>>(args);
  }
}

}  // namespace

cudaError_t launch_concat(const ConcatArgs& args, cudaStream_t stream) {
  switch (concat_unit_bytes(args)) {
    case 16:
      launch<uint4>(args, stream);
      break;
    case 8:
      launch<uint2>(args, stream);
      break;
    case 4:
      launch<uint32_t>(args, stream);
      break;
    case 2:
      launch<uint16_t>(args, stream);
      break;
    default:
      launch<uint8_t>(args, stream);
  }
  return cudaGetLastError();
}

}  // namespace fastcnn::cuda
