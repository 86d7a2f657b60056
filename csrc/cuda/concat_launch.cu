// Launch geometry of concat.
#include <algorithm>

#include "concat.cuh"
#include "launch.cuh"

namespace fastcnn::cuda {
namespace {

constexpr int64_t kUnitsPerThread = 4;  // chosen without a measurement; the loop in the kernel takes any number

template <typename Unit>
cudaError_t launch_units(const ConcatArgs& args, cudaStream_t stream) {
  int64_t longest = 0;
  for (int i = 0; i < args.count; ++i) longest = std::max(longest, args.inputs[i].run_bytes);
  const int64_t units = args.rows * longest / static_cast<int64_t>(sizeof(Unit));
  const dim3 grid(blocks_for(units, kConcatThreads, kUnitsPerThread), static_cast<unsigned>(args.count));
  const bool small = args.rows * args.row_bytes / static_cast<int64_t>(sizeof(Unit)) <= kMaxSmallIndex;
  const auto kernel = small ? concat_kernel<Unit, uint32_t> : concat_kernel<Unit, int64_t>;
  return launch("concat_kernel", kernel, grid, kConcatThreads, stream, args);
}

}  // namespace

cudaError_t launch_concat(const ConcatArgs& args, cudaStream_t stream) {
  switch (concat_unit_bytes(args)) {
    case 16:
      return launch_units<uint4>(args, stream);
    case 8:
      return launch_units<uint2>(args, stream);
    case 4:
      return launch_units<uint32_t>(args, stream);
    case 2:
      return launch_units<uint16_t>(args, stream);
    default:
      return launch_units<uint8_t>(args, stream);
  }
}

}  // namespace fastcnn::cuda
