// What the host code of concat hands to its kernel: plain pointers and sizes, bounded so that they fit a kernel's
// arguments.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastcnn::cuda {

struct ConcatInput {
  const char* data;  // [rows, run_bytes], dense
  int64_t run_bytes;
  int64_t offset;  // of its run in a row of the output, in bytes
};

// 64 inputs of 24 bytes keep the arguments well under the 4 KiB that every GPU takes; no network here joins as many.
constexpr int kMaxConcatInputs = 64;
constexpr int kConcatThreads = 256;  // of a block

struct ConcatArgs {
  char* output;  // [rows, row_bytes]
  int64_t rows, row_bytes;
  int count;  // of inputs, at least one
  ConcatInput inputs[kMaxConcatInputs];
};

// Bytes that one thread may move at a time: the widest power of two up to 16 of which every size, offset and address is
// a multiple.
inline int concat_unit_bytes(const ConcatArgs& args) {
  uint64_t bits = 16 | reinterpret_cast<uintptr_t>(args.output) | static_cast<uint64_t>(args.row_bytes);
  for (int i = 0; i < args.count; ++i) {
    const ConcatInput& input = args.inputs[i];
    bits |= reinterpret_cast<uintptr_t>(input.data) | static_cast<uint64_t>(input.run_bytes | input.offset);
  }
  return static_cast<int>(bits & (~bits + 1));  // the lowest bit set
}

// Copies every input into its place, in one launch.
cudaError_t launch_concat(const ConcatArgs& args, cudaStream_t stream);

}  // namespace fastcnn::cuda
