// Arguments of the convolution kernels: plain pointers and sizes. Strides and offsets are in elements. Tensors hold
// elements of T; what drivers pack and add up is in the type that T is computed in.
#pragma once
#include <cstdint>

#include "activation_args.h"
#include "element.h"

namespace fastcnn::cpu {

// A run of the reduction: `length` neighbouring elements that start `offset` elements after a pixel's window, and whose
// weights start at `weight` of the reduction. `flush` ends a partial sum, so that no chain of additions grows longer
// than some hundred terms.
struct Conv2dSegment {
  int64_t offset;
  int64_t weight;
  int32_t length;
  int32_t flush;
};

// out[p][k] = activation(bias[k] + sum over segments s, i of input[input_offsets[p] + s.offset + i] * weight[r][k] +
// residual[p][k]) where r counts the reduction through all segments. Serves the forward pass and the gradient of the
// input. Where the table's conv2d_pair is 2, an element of input and weight is a pair of T, and the sum takes both
// products.
template <typename T>
struct Conv2dDirectArgs {
  const Compute<T>* input;
  const int64_t* input_offsets;  // [pixels]
  T* output;
  const int64_t* output_offsets;  // [pixels]
  int64_t pixels;
  const Conv2dSegment* segments;  // [num_segments]
  int64_t num_segments;
  const Compute<T>* weight;  // [reduction, vectors * width], padded with zeros
  const T* bias;             // [channels] or null
  int vectors;               // registers of output channels, 1 to the table's conv2d_max_vectors
  int64_t channels;          // output channels in this block, at most vectors * width
  Activation activation;
  const T* residual;                // or null; may be the output
  const int64_t* residual_offsets;  // [pixels]
  const Compute<T>* next_weight;    // of the next call, as much as this one's, or null: fetched meanwhile
};

// The same sum for a handful of output channels, with the lanes over positions: planes of one input channel each, rows
// one after the other, so that a position's window lies at the same offsets all over a plane. Positions between rows
// are computed as well and left out of the output.
template <typename T>
struct Conv2dPlanarArgs {
  const Compute<T>* planes;
  const int64_t* offsets;    // [reduction]: from a position to an element of its window
  const Compute<T>* weight;  // [reduction, channels]
  int64_t reduction;
  int channels;   // at most kPlanarChannels
  const T* bias;  // [channels] or null
  Activation activation;
  int64_t rows, cols, row_stride;  // of positions
  Compute<T>* results;             // [channels, result_stride]: scratch
  int64_t result_stride;           // rows * row_stride rounded up to whole tiles
  T* output;                       // [rows, cols, channels], at the first position
  int64_t out_stride_h, out_stride_w;
};
constexpr int kPlanarChannels = 8;

// Rows of pixels become rows of planes: planes[c][row][first_col + col] = source[row][col][c], with zeros before and
// after the columns. Whole registers are written, so that up to one more than row_stride holds becomes zero.
template <typename T>
struct Conv2dPlanesArgs {
  const T* source;  // [rows, cols, channels]
  int64_t source_stride_h, source_stride_w;
  int64_t channels, rows, cols;
  Compute<T>* planes;  // [channels, plane_stride] of rows row_stride apart
  int64_t plane_stride, row_stride, first_col;
};

// sums[tap][k][lane] += sum over the positions p that are `lane` modulo the width, row by row, of
// planes[p + offsets[tap]] * grad[k][p], for a handful of output channels.
template <typename T>
struct Conv2dPlanarGradWeightArgs {
  const T* planes;
  const int64_t* offsets;  // [taps]: from a position to an element of its window
  int64_t taps;
  int64_t rows, cols, row_stride;  // of positions in planes
  const T* grad;                   // [channels, grad_stride] of rows that are whole registers, with zeros at their ends
  int64_t grad_stride;
  int channels;  // at most kPlanarChannels
  T* sums;       // [taps, channels, width]
};
// Taps of a tile of that many channels.
constexpr int planar_grad_weight_taps(int accumulators, int channels) {
  return accumulators / channels > 8 ? 8 : accumulators / channels < 1 ? 1 : accumulators / channels;
}

// Packs one block of output lanes: packed[r][lane] = weight[lane * lane_stride + r's place], zeros beyond `lanes`.
// The reduction runs over taps, and within a tap over `depth` elements `depth_stride` apart. In pairs, two of those are
// an element of packed, and a zero follows an odd number.
template <typename T>
struct Conv2dPackArgs {
  const T* weight;
  int64_t lane_stride;
  int64_t depth_stride;
  int64_t depth;
  const int64_t* tap_offsets;  // [num_taps]
  int64_t num_taps;
  int64_t lanes;
  int64_t padded_lanes;
  Compute<T>* packed;  // [num_taps * depth, padded_lanes]
  bool pairs;          // only where the table's conv2d_pair is 2
};

// target[row][i] = source[row][i] for i < length; zeros from there up to `padded`. In pairs, the source's element is
// the lower half of the target's, and second's the upper half.
template <typename T>
struct Conv2dWidenArgs {
  const T* source;  // [rows, source_stride]
  int64_t source_stride;
  Compute<T>* target;  // [rows, target_stride]
  int64_t target_stride;
  int64_t rows, length, padded;
  const T* second;  // as source, or null for zeros
  bool pairs;       // only where the table's conv2d_pair is 2
};

// Pixels between a weight gradient's use of its operands and their prefetch, which strides defeat the hardware's: 16 of
// 24 operations each are the latency of memory (EPYC 9004).
constexpr int64_t kGradWeightAhead = 16;

// A pixel that counts in a weight gradient: its place in grad_output, and where its window begins.
struct GradWeightPixel {
  int64_t grad, input;
};

// grad_weight[k][lane] (+)= sum over pixels p of grad_output[p.grad][k] * input[p.input + lane]. Where the table's
// conv2d_pair is 2, an element of grad_output and input is a pair of bfloat16, of two pixels, and both products count.
template <typename T>
struct Conv2dGradWeightArgs {
  const T* grad_panel;  // [any, grad_stride]: `rows` output channels of each, those beyond valid_rows anything
  int64_t grad_stride;
  const T* input;
  const GradWeightPixel* pixels;  // [num_pixels + kGradWeightAhead]
  int64_t num_pixels;
  bool adds;       // onto grad_weight, instead of replacing it
  T* grad_weight;  // [valid_rows, row_stride]
  int64_t row_stride;
  int rows;  // a panel's output channels: 4, 5, 6, 8 or 10
  int valid_rows;
  int vectors;
  int64_t lanes;  // valid lanes, at most vectors * width
};

// The same sum for layers of few input channels, with the roles exchanged: lanes are output channels.
// transposed[row][lane] += sum over pixels p of input[input_offsets[p] + row_offsets[row]] * grad_output[p][lane]
template <typename T>
struct Conv2dGradWeightTapsArgs {
  const Compute<T>* input;
  const int64_t* input_offsets;  // [pixels]
  const int64_t* row_offsets;    // [rows]: (kernel row, kernel column, input channel)
  int64_t rows;
  const T* grad_output;  // [pixels, grad_stride]
  int64_t grad_stride;
  int64_t pixels;
  Compute<T>* transposed;  // [rows, row_stride]
  int64_t row_stride;
  int vectors;
  int64_t lanes;  // valid lanes, at most vectors * width
};

// sums[i] = sum over `count` parts of parts[part][i], which may be in the first one's place.
template <typename T>
struct Conv2dAddPartsArgs {
  const T* parts;  // [count, part_stride]
  int64_t part_stride, count, size;
  T* sums;  // [size]
};

// grad = grad_output, where `activated` is given zero where its bit is not set; sums[c] = sum over
// rows of grad[row][c].
template <typename T>
struct Conv2dGradOutputArgs {
  const T* grad_output;  // [rows, grad_stride]
  int64_t grad_stride;
  const uint8_t* activated;  // [rows, mask_stride] of one bit a channel, or null
  int64_t mask_stride;
  T* grad;  // [rows, channels] or null
  int64_t rows;
  int64_t channels;
  double* sums;  // [channels] or null
};

// Neighbouring taps of a depthwise convolution: tap k of `count` reads h rows and w + k columns after a window's
// origin, and its weights begin `weight_offset + k * weight_step` after the first.
struct Conv2dDepthwiseRun {
  int64_t h, w, count;
  int64_t weight_offset, weight_step;
};

// output(n, i, j, c) = activation(bias[c] + sum over taps of input(n, i * step_h + h, j * step_w + w, c) * weight[c]),
// with zeros outside the input. Serves the forward pass and the gradient of the input.
template <typename T>
struct Conv2dDepthwiseArgs {
  const T* input;
  int64_t in_stride_n, in_stride_h, in_stride_w, in_h, in_w;
  const T* weight;  // neighbouring channels
  const T* bias;    // [channels] or null
  T* output;
  int64_t out_stride_n, out_stride_h, out_stride_w, out_h, out_w;
  int64_t channels, step_h, step_w;
  const Conv2dDepthwiseRun* runs;  // [num_runs]
  int64_t num_runs;
  int64_t first_w, last_w;     // of all taps
  int64_t row_begin, row_end;  // of the flattened [n, out_h]
  Activation activation;
};

// sums[kh][kw][c] += the products of grad_output's rows [row_begin, row_end) of the flattened [n, out_h]
template <typename T>
struct Conv2dDepthwiseGradWeightArgs {
  const T* input;        // [n, in_h, in_w, channels]
  const T* grad_output;  // [n, out_h, out_w, channels]
  Compute<T>* sums;      // [kernel_h * kernel_w, channels]
  int64_t channels, in_h, in_w, out_h, out_w;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t row_begin, row_end;
};

}  // namespace fastcnn::cpu
