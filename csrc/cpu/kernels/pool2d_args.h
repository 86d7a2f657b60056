// Arguments of the pooling kernels: plain pointers and sizes. Images are NHWC, lanes are channels, and pixels lie
// evenly spaced, `pitch` elements apart, or else next to each other.
#pragma once
#include <cstdint>

#define FASTCNN_POOL2D_KERNELS(KERNEL)                     \
  KERNEL(max_pool2d, MaxPool2dArgs)                        \
  KERNEL(max_pool2d_backward, MaxPool2dBackwardArgs)       \
  KERNEL(max_pool2d_backward_disjoint, Pool2dDisjointArgs) \
  KERNEL(avg_pool2d, AvgPool2dArgs)                        \
  KERNEL(avg_pool2d_backward, AvgPool2dBackwardArgs)       \
  KERNEL(avg_pool2d_backward_disjoint, Pool2dDisjointArgs) \
  KERNEL(global_avg_pool2d, GlobalAvgPool2dArgs)           \
  KERNEL(global_avg_pool2d_backward, GlobalAvgPool2dArgs)

namespace fastcnn::cpu {

// One window along one axis, cut to the image: its taps lie at begin, begin + dilation, ..., `count` of them.
struct PoolWindow {
  int64_t begin;
  int64_t count;
  int64_t tap;      // which tap of the whole window the first one is
  int64_t divisor;  // the window's share in the average's divisor, which is the product over both axes
};

// A window that covers a position, along one axis, and which of its taps does.
struct PoolHit {
  int64_t window;
  int64_t tap;
  int64_t divisor;
};

// For each position of an axis the windows over it: hits[starts[position]] to hits[starts[position + 1]].
struct PoolHits {
  const int64_t* starts;  // [positions + 1]
  const PoolHit* hits;
};

// For the output rows [row_begin, row_end) of the flattened [n * out_h].
template <typename T>
struct MaxPool2dArgs {
  const T* input;  // [n, in_h, in_w, channels]
  int64_t in_pitch;
  T* output;  // [n, out_h, out_w, channels]
  int64_t out_pitch;
  uint8_t* offsets8;       // [n, out_h, out_w, channels], or null: the winning tap, kh * kernel_w + kw
  int32_t* offsets32;      // the same for windows of more than 256 taps
  const PoolWindow* rows;  // [out_h]
  const PoolWindow* cols;  // [out_w]
  int64_t channels, in_h, in_w, out_h, out_w, kernel_w, dilation_h, dilation_w;
  int64_t next_window;  // elements from a window to the next one in its row
  int64_t row_begin, row_end;
};

// For the input rows [row_begin, row_end) of the flattened [n * in_h]. One of the offsets is null.
template <typename T>
struct MaxPool2dBackwardArgs {
  const T* grad_output;     // [n, out_h, out_w, channels]
  const uint8_t* offsets8;  // as grad_output
  const int32_t* offsets32;
  T* grad_input;  // [n, in_h, in_w, channels]
  PoolHits rows, cols;
  int64_t channels, in_h, in_w, out_h, out_w, kernel_w;
  int64_t row_begin, row_end;
};

// For the output rows [row_begin, row_end) of the flattened [n * out_h].
template <typename T>
struct AvgPool2dArgs {
  const T* input;  // [n, in_h, in_w, channels]
  int64_t in_pitch;
  T* output;  // [n, out_h, out_w, channels]
  int64_t out_pitch;
  const PoolWindow* rows;  // [out_h]
  const PoolWindow* cols;  // [out_w]
  int64_t channels, in_h, in_w, out_h, out_w;
  int64_t next_window;  // elements from a window to the next one in its row, about
  int64_t row_begin, row_end;
};

// For the input rows [row_begin, row_end) of the flattened [n * in_h].
template <typename T>
struct AvgPool2dBackwardArgs {
  const T* grad_output;  // [n, out_h, out_w, channels]
  T* grad_input;         // [n, in_h, in_w, channels]
  PoolHits rows, cols;
  int64_t channels, in_h, in_w, out_h, out_w;
  int64_t row_begin, row_end;
};

// Gradient where no pixel lies under two windows, for the output rows [row_begin, row_end) of the flattened [n *
// out_h]. A row owns the input rows from its windows to the next row's; the first and the last row own what is left.
template <typename T>
struct Pool2dDisjointArgs {
  const T* grad_output;     // [n, out_h, out_w, channels]
  const uint8_t* offsets8;  // max pooling: as grad_output; one of the offsets is null
  const int32_t* offsets32;
  T* grad_input;           // [n, in_h, in_w, channels]
  const PoolWindow* rows;  // [out_h]
  const PoolWindow* cols;  // [out_w]
  int64_t channels, in_h, in_w, out_h, out_w, kernel_w;
  int64_t row_begin, row_end;
};

// One window over the whole image, for the images [row_begin, row_end).
template <typename T>
struct GlobalAvgPool2dArgs {
  const T* source;  // forward: input [n, in_h, in_w, channels]; backward: grad_output [n, channels]
  T* result;        // forward: output [n, channels]; backward: grad_input [n, in_h, in_w, channels]
  int64_t channels, in_h, in_w;
  int64_t row_begin, row_end;
};

}  // namespace fastcnn::cpu
