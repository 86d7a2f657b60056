// What the host code of concat hands to its launcher: plain pointers and sizes.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastcnn::cuda {

struct ConcatInput {
  const char* data;  // [rows, run_bytes], rows `stride_bytes` apart
  int64_t run_bytes, stride_bytes;
  int64_t offset;  // of its run in a row of the output, in bytes
};

// 64 inputs of 32 bytes keep a kernel's arguments well under the 4 KiB that every GPU takes; no network here joins as
// many. More are read from a table in the GPU's memory.
constexpr int kMaxConcatInputs = 64;

struct ConcatArgs {
  char* output;  // [rows, row_bytes]
  int64_t rows, row_bytes;
  int64_t count;              // of inputs, at least one
  const ConcatInput* inputs;  // in the host's memory
  const ConcatInput* table;   // the same in the GPU's, or null where there are no more than kMaxConcatInputs
};

// Copies every input into its place, in one launch.
cudaError_t launch_concat(const ConcatArgs& args, cudaStream_t stream);

}  // namespace fastcnn::cuda
