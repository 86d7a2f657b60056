// Arguments of the Winograd kernels. A tile of outputs x outputs values comes from points x points input elements, with
// points = outputs + kernel - 1. Transformed values lie in points * points planes. Strides are in elements.
#pragma once
#include <cstdint>

#include "element.h"

namespace fastcnn::cpu {

// Tiles over a batch of images: tile t covers rows (t / tiles_w % tiles_h) * outputs and on, columns t % tiles_w *
// outputs and on, of image t / (tiles_h * tiles_w).
struct WinogradTiles {
  int64_t tiles_h, tiles_w;
  int64_t first, count;  // the tiles to work on
};

// transformed[i][j] = B^T x B over each tile's window (or, for a gradient's tile, A y A^T), channel by channel.
template <typename T>
struct Conv2dWinogradInputArgs {
  const T* image;  // [n, height, width, depth], neighbouring channels
  int64_t stride_n, stride_h, stride_w, height, width, depth;
  int64_t origin_h, origin_w;  // where the first tile's window begins, negative in the padding
  WinogradTiles tiles;
  int points, kernel;
  const T* zeros;           // [depth]: what lies outside the image
  Compute<T>* transformed;  // [points * points] planes of [tiles.count, row_stride]
  int64_t plane_stride, row_stride;
};

// transformed = G g G^T, element by element of a packed block of weights.
template <typename T>
struct Conv2dWinogradWeightArgs {
  const T* packed;  // [kernel * kernel, count]
  int64_t count;    // a multiple of the register's width
  int points, kernel;
  T* transformed;  // [points * points] planes
  int64_t plane_stride;
};

// output = activation(bias + A^T m A + residual) for each tile, clipped to the image; or the maxima of that over
// windows of 2 x 2, of which a tile holds whole ones.
template <typename T>
struct Conv2dWinogradOutputArgs {
  const Compute<T>* products;  // [points * points] planes of [tiles.count, row_stride]
  int64_t plane_stride, row_stride;
  WinogradTiles tiles;
  int points, kernel;
  const T* bias;          // [lanes] or null
  Activation activation;  // a rectifier, where maxima are taken
  T* output;
  int64_t stride_n, stride_h, stride_w, height, width, lanes;
  const T* residual;  // of the output's size, or null; may be the output
  int64_t residual_stride_n, residual_stride_h, residual_stride_w;
  bool max_pools;  // the output is of half the height and width, rounded down
};

// grad_weight = G^T m G for each output channel, lanes are input channels.
template <typename T>
struct Conv2dWinogradGradWeightArgs {
  const T* products;  // [points * points] planes of [rows, row_stride]
  int64_t plane_stride, row_stride, rows, lanes;
  int points, kernel;
  T* grad_weight;  // [rows, kernel, kernel, lanes]
};

}  // namespace fastcnn::cpu
