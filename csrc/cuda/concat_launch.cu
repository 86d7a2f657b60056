// Launch geometry of concat.
#include <algorithm>

#include "concat.cuh"
#include "launch.cuh"

namespace fastcnn::cuda {
namespace {

constexpr int64_t kUnitsPerThread = 4;  // chosen without a measurement; the loop in the kernel takes any number
constexpr int64_t kMaxGridY = std::min<int64_t>(kMaxGrid, 65535);

// Bytes that one thread may move at a time: the widest power of two up to 16 of which every size, offset and address is
// a multiple.
int concat_unit_bytes(const ConcatArgs& args) {
  uint64_t bits = 16 | reinterpret_cast<uintptr_t>(args.output) | static_cast<uint64_t>(args.row_bytes);
  for (int64_t i = 0; i < args.count; ++i) {
    const ConcatInput& input = args.inputs[i];
    bits |= reinterpret_cast<uintptr_t>(input.data) |
            static_cast<uint64_t>(input.run_bytes | input.stride_bytes | input.offset);
  }
  return static_cast<int>(bits & (~bits + 1));  // the lowest bit set
}

template <typename Unit>
cudaError_t launch_units(const ConcatArgs& args, cudaStream_t stream) {
  ConcatProblem p{args.output, args.rows, args.row_bytes, args.count, args.table, {}};
  if (args.table == nullptr) std::copy_n(args.inputs, args.count, p.inputs);
  int64_t longest = 0, widest = args.row_bytes;
  for (int64_t i = 0; i < args.count; ++i) {
    longest = std::max(longest, args.inputs[i].run_bytes);
    widest = std::max(widest, args.inputs[i].stride_bytes);
  }
  constexpr int64_t kBytes = sizeof(Unit);
  const unsigned blocks = blocks_for(args.rows * longest / kBytes, kConcatThreads, kUnitsPerThread);
  const dim3 grid(blocks, static_cast<unsigned>(std::min(args.count, kMaxGridY)));
  const bool small = args.rows * widest / kBytes <= kMaxSmallIndex;
  const auto kernel = small ? concat_kernel<Unit, uint32_t> : concat_kernel<Unit, int64_t>;
  return launch("concat_kernel", kernel, grid, kConcatThreads, stream, p);
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
