// Sizes of an op as plain numbers, and the arithmetic of output sizes. Nothing here knows torch or checks input:
// checks.h turns tensors into these structs and owns every message.
#pragma once
#include <algorithm>
#include <cstdint>

namespace fastcnn {

struct Conv2dGeometry {
  int64_t batch, in_channels, in_h, in_w;
  int64_t out_channels, out_h, out_w;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  int64_t groups;

  int64_t group_in() const { return in_channels / groups; }
  int64_t group_out() const { return out_channels / groups; }
  bool depthwise() const { return groups > 1 && groups == in_channels && in_channels == out_channels; }
};

// Winning taps pass through lanes of float32, where integers are exact up to here.
constexpr int64_t kMaxPool2dTaps = int64_t{1} << 24;

struct Pool2dGeometry {
  int64_t batch, channels, in_h, in_w;
  int64_t out_h, out_w;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
};

// Batch norm sees rows of channels: every position of every image is a row.
struct BatchNormGeometry {
  int64_t rows, channels;
  int64_t mask_stride;  // bytes of a row of the ReLU's mask
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t floor_div(int64_t a, int64_t b) { return a / b - ((a % b != 0) && ((a < 0) != (b < 0))); }

// The outputs of a dimension, first and one past the last, whose tap `tap` elements after their window's origin lies
// inside the image.
struct OutputRange {
  int64_t begin, end;
};
inline OutputRange outputs_inside(int64_t out, int64_t stride, int64_t tap, int64_t in) {
  const int64_t begin = std::clamp<int64_t>(ceil_div(-tap, stride), 0, out);
  return {begin, std::clamp<int64_t>(ceil_div(in - tap, stride), begin, out)};
}

// floor((in + 2 pad - dilation (kernel - 1) - 1) / stride) + 1
inline int64_t conv_out_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  return floor_div(in + 2 * pad - dilation * (kernel - 1) - 1, stride) + 1;
}

// As conv_out_size; with ceil_mode rounded up, less a last window that would start in the right padding.
inline int64_t pool_out_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
                             bool ceil_mode) {
  const int64_t span = in + 2 * pad - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
  int64_t out = floor_div(span, stride) + 1;
  if (ceil_mode && (out - 1) * stride >= in + pad) --out;
  return out;
}

}  // namespace fastcnn
