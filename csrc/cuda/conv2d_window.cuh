// What conv2d's kernels share: the problem as they see it, windows of the three passes, and the end of an output.
#pragma once
#include "conv2d_args.h"
#include "element.cuh"

namespace fastcnn::cuda {

struct Conv2dAxis {
  int in, out, kernel, stride, pad, dilation;
};

// Unsigned division by a number known at launch: one product of 32 x 32 bits (Granlund and Montgomery, 1994).
struct Divisor {
  uint32_t divisor, magic, shift;

  // Of numbers below 2^31.
  __device__ uint32_t divide(uint32_t x) const {
    return static_cast<uint32_t>((static_cast<uint64_t>(x) * magic >> 32) + x) >> shift;
  }
};

struct Conv2dProblem {
  Conv2dPass pass;
  const void *input, *weight, *bias, *grad_output;
  void* result;
  Conv2dAxis h, w;
  int batch, in_channels, out_channels, groups, group_in, group_out;
  int kernel_row;  // weights of an output channel: kernel_h * kernel_w * group_in
  bool relu;
  // Whether runs of a group's channels may be moved as 16-byte vectors.
  bool in_vectors, out_vectors;
  // Tiles of a group's result. Phases of the input's gradient, and parts of the depth, `part_depth` terms each, have
  // blocks of their own; a part has `part_size` elements.
  int tiles_m, tiles_n, phases_w, depth_parts;
  int64_t part_depth, part_size;
  Divisor out_w, out_h;
  // Of the depthwise and direct kernels: vectors or quads of channels of a block, and its threads for each; tiles of
  // positions and the patch of the image under them; and their divisors.
  int block_vectors, block_slices, block_groups;
  int tile_h, tile_w, patch_h, patch_w, patch_unit, chunk;
  int64_t patch_tiles, parts;
  Divisor tile_columns, patch_columns, patch_units, chunks, grad_pitches;
};

// One dimension of the windows of a pass over its image (the input, or grad_output in the input's gradient). Position
// p's tap t lies at image element p * step + origin + t * tap_step, outside the image as well as inside; its weights
// are the kernel's at first_tap + t * kernel_step. The position's result lies at result_first + p * result_step.
struct WindowAxis {
  int image, positions, step, origin;
  int taps, tap_step, first_tap, kernel_step;
  int result, result_first, result_step;
};

// The input's gradient at the positions congruent to `phase` modulo the stride is a convolution of grad_output with
// stride 1 over those of the kernel's elements that reach them. The other passes have no phases.
__device__ inline WindowAxis window_axis(const Conv2dAxis& a, Conv2dPass pass, int phase) {
  if (pass != Conv2dPass::grad_input) return {a.in, a.out, a.stride, -a.pad, a.kernel, a.dilation, 0, 1, a.out, 0, 1};
  int divisor = a.stride;
  for (int rest = a.dilation; rest != 0;) {
    const int next = divisor % rest;
    divisor = rest, rest = next;
  }
  const int kernel_step = a.stride / divisor;
  int first = 0;
  const int last = kernel_step < a.kernel ? kernel_step : a.kernel;
  while (first < last && (phase + a.pad - first * a.dilation) % a.stride != 0) ++first;
  const int taps = first < last ? (a.kernel - 1 - first) / kernel_step + 1 : 0;
  return {a.out,   (a.in - phase + a.stride - 1) / a.stride,
          1,       taps > 0 ? (phase + a.pad - first * a.dilation) / a.stride : 0,
          taps,    -(a.dilation / divisor),
          first,   kernel_step,
          a.in,    phase,
          a.stride};
}

// An element number that no tap comes back from into the image.
constexpr int kOutside = -(1 << 30);
__device__ inline bool is_inside(int at, int size) { return static_cast<unsigned>(at) < static_cast<unsigned>(size); }

// A place in a reduction over taps and channels, the channels innermost.
struct TapPosition {
  int h, w, c;

  __device__ void add(int count, int channels, int taps_w) {
    c += count;
    while (c >= channels) {
      c -= channels;
      if (++w == taps_w) w = 0, ++h;
    }
  }
};

__device__ inline TapPosition tap_at(int depth, int channels, int taps_w) {
  const int tap = depth / channels;
  return {tap / taps_w, tap % taps_w, depth - tap * channels};
}

// A position of the result's grid: pixel number `pixel` in the order n, h, w.
struct Pixel {
  int n, y, x;
};
__device__ inline Pixel pixel_at(uint32_t pixel, const WindowAxis& h, const WindowAxis& w) {
  const uint32_t row = pixel / w.positions;
  return {static_cast<int>(row / h.positions), static_cast<int>(row % h.positions),
          static_cast<int>(pixel - row * w.positions)};
}

// Elements before a pixel's channels in a result of `channels`.
__device__ inline int64_t result_offset(const Pixel& at, const WindowAxis& h, const WindowAxis& w, int channels) {
  const int64_t row = static_cast<int64_t>(at.n) * h.result + h.result_first + at.y * h.result_step;
  return (row * w.result + w.result_first + at.x * w.result_step) * channels;
}

// NaN stays NaN.
template <typename C>
__device__ inline C finish(C sum, C bias, bool relu) {
  const C value = sum + bias;
  return relu && value < 0 ? C(0) : value;
}

}  // namespace fastcnn::cuda
