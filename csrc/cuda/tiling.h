// How a grid shares out rows of units, where a unit is what one thread computes at a time: some neighbouring channels.
#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "../common/geometry.h"

namespace fastcnn::cuda {

constexpr int kBlockThreads = 256;  // at most; kernels that share memory have room for as many

// A block takes threads_x units of each of tile_rows rows; blocks that lie side by side in the rows follow each other.
struct Tiling {
  int64_t rows, units;  // in all, and of a row
  int64_t tile_rows;
  int64_t tiles_x, tiles_y;
  int threads_x, threads_y;

  dim3 grid() const { return dim3(static_cast<unsigned>(tiles_x * tiles_y)); }
  dim3 block() const { return dim3(static_cast<unsigned>(threads_x), static_cast<unsigned>(threads_y)); }
};

// Blocks at most `max_x` units wide; each thread takes as many rows.
inline Tiling tile_rows(int64_t rows, int64_t units, int64_t rows_per_thread, int max_x = kBlockThreads) {
  Tiling t{};
  t.rows = rows, t.units = units;
  t.tiles_x = ceil_div(units, max_x);
  t.threads_x = static_cast<int>(ceil_div(units, t.tiles_x));  // as even as can be: threads beyond the units idle
  t.threads_y = kBlockThreads / t.threads_x;
  t.tile_rows = t.threads_y * rows_per_thread;
  t.tiles_y = ceil_div(rows, t.tile_rows);
  return t;
}

// A unit of up to `lanes` channels a thread, in images that have `rows` rows of pixels in all.
inline Tiling tile_image(int64_t rows, int64_t width, int64_t channels, int lanes) {
  return tile_rows(rows, width * ceil_div(channels, lanes), /*rows_per_thread=*/1);
}

}  // namespace fastcnn::cuda
