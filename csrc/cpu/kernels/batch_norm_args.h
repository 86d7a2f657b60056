// Arguments of the batch norm kernels: plain pointers and sizes. Tensors are rows of channels (NHWC); a kernel works on
// a tile of `rows` x `channels`, its pointers at the tile's first element, strides in elements. A mask holds one bit an
// element, set where the ReLU lets the gradient pass: byte channel / 8 of its row, bit channel % 8.
#pragma once
#include <cstdint>

#include "element.h"

#define FASTCNN_BATCH_NORM_KERNELS(KERNEL)            \
  KERNEL(batch_norm_stats, BatchNormStatsArgs)        \
  KERNEL(batch_norm_apply, BatchNormApplyArgs)        \
  KERNEL(batch_norm_grad_sums, BatchNormGradSumsArgs) \
  KERNEL(batch_norm_grad_input, BatchNormGradInputArgs)

namespace fastcnn::cpu {

// A reduction keeps two or three values a channel in the first cache.
constexpr int64_t kMaxBatchNormTileChannels = 1024;

// sum[c] = sum of the tile's column c; square[c] = sum of squared distances from the column's mean.
template <typename T>
struct BatchNormStatsArgs {
  const T* input;  // [rows, row_stride]
  int64_t rows, channels, row_stride;
  int64_t block_rows;  // rows summed in Compute<T> before double takes over
  double* sum;         // [channels]
  double* square;      // [channels]
};

// output = relu((input - mean) * scale + shift + residual)
template <typename T>
struct BatchNormApplyArgs {
  const T* input;           // [rows, row_stride]
  const T* residual;        // [rows, residual_stride], or null
  const Compute<T>* mean;   // [channels]
  const Compute<T>* scale;  // [channels]
  const Compute<T>* shift;  // [channels]
  T* output;                // [rows, output_stride]
  uint8_t* mask;            // [rows, mask_stride], or null
  int64_t rows, channels, row_stride, residual_stride, output_stride, mask_stride;
  bool relu;
  bool streamed;  // the output goes around the caches; it and output_stride must be aligned to 64 bytes
};

// With grad = grad_output where the mask lets it pass: sum[c] = sum of grad, product[c] = sum of grad * (input - mean),
// and where `result` is not null, result = addend + grad * scale; the result may take grad_output's or addend's place.
template <typename T>
struct BatchNormGradSumsArgs {
  const T* grad_output;    // [rows, grad_stride]
  const T* input;          // [rows, row_stride]
  const uint8_t* mask;     // [rows, mask_stride], or null
  const Compute<T>* mean;  // [channels]
  int64_t rows, channels, row_stride, grad_stride, mask_stride;
  int64_t block_rows;       // rows summed in Compute<T> before double takes over
  double* sum;              // [channels]
  double* product;          // [channels]
  const Compute<T>* scale;  // [channels]
  const T* addend;          // [rows, addend_stride]
  T* result;                // [rows, result_stride], or null
  int64_t addend_stride, result_stride;
};

// grad_input = grad * scale + (input - mean) * slope + offset, without the last two terms where input is null;
// grad_residual = grad.
template <typename T>
struct BatchNormGradInputArgs {
  const T* grad_output;      // [rows, grad_stride]
  const T* input;            // [rows, row_stride], or null
  const uint8_t* mask;       // [rows, mask_stride], or null
  const Compute<T>* mean;    // [channels]
  const Compute<T>* scale;   // [channels]
  const Compute<T>* slope;   // [channels]
  const Compute<T>* offset;  // [channels]
  T* grad_input;             // [rows, output_stride]
  T* grad_residual;          // [rows, output_stride], or null
  int64_t rows, channels, row_stride, grad_stride, output_stride, mask_stride;
  bool streamed;  // as BatchNormApplyArgs', for both results
};

}  // namespace fastcnn::cpu
