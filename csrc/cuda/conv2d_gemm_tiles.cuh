// The loaders and the writer of conv2d's implicit GEMM: rows x columns of a result, summed over a depth.
//
//   pass         rows               columns          depth              image operand    matrix operand
//   forward      output positions   output channels  taps, channels     input            weight
//   grad_input   input positions    input channels   taps, channels     grad_output      weight
//   grad_weight  taps, channels     output channels  output positions   input            grad_output
//
// A tile of an operand is loaded as lines of 16-byte vectors along the dimension in which memory is contiguous.
#pragma once
#include "conv2d_window.cuh"

namespace fastcnn::cuda {

// Four warps whose tiles are 64 x 32: accumulators of 64 registers a thread leave room for the loads in flight. Where
// all columns fit into 32, a tile is as narrow, and its warps' 32 x 32.
constexpr int kGemmThreads = 128, kWide = 64, kNarrow = 32;
template <typename T>
constexpr int kTileM = sizeof(T) == 8 ? 64 : 128;  // sums of float64 take twice the registers

// Which vectors of a tile of kRows x kDepth elements are the thread's.
template <typename T, int kRows, int kDepth, bool kAlongDepth>
struct TileMap {
  static constexpr int kLength = kAlongDepth ? kDepth : kRows;  // of a line
  static constexpr int kLines = kAlongDepth ? kRows : kDepth;
  static constexpr int kPerLine = kLength / kVector<T>;
  static constexpr int kCount = kLines * kPerLine / kGemmThreads;
  static constexpr bool kIsAlongDepth = kAlongDepth;

  __device__ static int line(int i) { return threadIdx.x / kPerLine + i * (kGemmThreads / kPerLine); }
  __device__ static int along() { return threadIdx.x % kPerLine * kVector<T>; }
};

// What a block computes: its tile, and which group, phase and part of the depth it lies in.
struct GemmBlock {
  int row, column, group, part;
  WindowAxis h, w;
  int rows, columns;
  int64_t depth_begin, depth_end;
};

template <typename T, Conv2dPass kPass, int kTileN>
__device__ inline GemmBlock gemm_block(const Conv2dProblem& p) {
  GemmBlock b;
  uint32_t index = blockIdx.x;
  b.column = index % p.tiles_n * kTileN, index /= p.tiles_n;
  b.row = index % p.tiles_m * kTileM<T>, index /= p.tiles_m;
  b.group = index % p.groups, index /= p.groups;
  b.part = index % p.depth_parts;
  const int phase = index / p.depth_parts;
  b.h = window_axis(p.h, kPass, phase / p.phases_w), b.w = window_axis(p.w, kPass, phase % p.phases_w);
  const int positions = p.batch * b.h.positions * b.w.positions;
  int64_t depth = positions;
  if constexpr (kPass == Conv2dPass::grad_weight) {
    b.rows = p.kernel_row, b.columns = p.group_out;
  } else {
    b.rows = positions, b.columns = kPass == Conv2dPass::forward ? p.group_out : p.group_in;
    depth = b.h.taps * b.w.taps * (kPass == Conv2dPass::forward ? p.group_in : p.group_out);
  }
  b.depth_begin = b.part * p.part_depth;  // a phase of few taps may have no terms there
  b.depth_end = b.depth_begin + p.part_depth < depth ? b.depth_begin + p.part_depth : depth;
  return b;
}

// The image operand: elements at (position, tap, channel), zero outside the image. A thread's lines are positions and
// its vectors lie along the depth, or in the weight's gradient the depth's positions and along the rows.
template <typename T, Conv2dPass kPass, int kDepth>
class ImageTile {
 public:
  using Map = TileMap<T, kTileM<T>, kDepth, kPass != Conv2dPass::grad_weight>;
  using Staged = Vec<T>[Map::kCount];

  __device__ ImageTile(const Conv2dProblem& p, const GemmBlock& b) : p_(p), b_(b) {
    constexpr bool kOfInput = kPass != Conv2dPass::grad_input;
    pitch_ = kOfInput ? p.in_channels : p.out_channels;
    channels_ = kOfInput ? p.group_in : p.group_out;
    vectors_ = kOfInput ? p.in_vectors : p.out_vectors;
    image_ = static_cast<const T*>(kOfInput ? p.input : p.grad_output) + b.group * channels_;
    const int first = Map::kIsAlongDepth ? static_cast<int>(b.depth_begin) : b.row;
    tap_ = tap_at(first + Map::along(), channels_, b.w.taps);
    place(Map::kIsAlongDepth ? b.row : b.depth_begin, Map::kIsAlongDepth ? b.rows : b.depth_end);
  }

  // To the tile `kDepth` further on, the depth's `step`th.
  __device__ void advance(int step) {
    if constexpr (Map::kIsAlongDepth) {
      tap_.add(kDepth, channels_, b_.w.taps);
    } else {
      place(b_.depth_begin + static_cast<int64_t>(step) * kDepth, b_.depth_end);
    }
  }

  __device__ void load(Staged& to) const {
    if (vectors_) {
      const Shift tap = shift(tap_);
#pragma unroll
      for (int i = 0; i < Map::kCount; ++i) {
        to[i] = is_inside_at(i, tap) ? load_vector(image_ + first_[i] + tap.elements) : Vec<T>{};
      }
    } else {
      TapPosition position = tap_;
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e) {
        const Shift tap = shift(position);
#pragma unroll
        for (int i = 0; i < Map::kCount; ++i)
          to[i][e] = is_inside_at(i, tap) ? image_[first_[i] + tap.elements] : from_compute<T>(0);
        position.add(1, channels_, b_.w.taps);
      }
    }
  }

 private:
  // From a position's first tap and channel to another: the same for all lines.
  struct Shift {
    int y, x;
    int64_t elements;
    bool exists;
  };
  __device__ Shift shift(const TapPosition& tap) const {
    const int y = tap.h * b_.h.tap_step, x = tap.w * b_.w.tap_step;
    return {y, x, (static_cast<int64_t>(y) * b_.w.image + x) * pitch_ + tap.c, tap.h < b_.h.taps};
  }
  __device__ bool is_inside_at(int i, const Shift& tap) const {
    return tap.exists && is_inside(y_[i] + tap.y, b_.h.image) && is_inside(x_[i] + tap.x, b_.w.image);
  }

  __device__ void place(int64_t first, int64_t end) {
#pragma unroll
    for (int i = 0; i < Map::kCount; ++i) {
      const int64_t pixel = first + Map::line(i);
      Pixel at = {0, 0, 0};
      if (pixel < end) {
        if constexpr (Map::kIsAlongDepth) {
          at = pixel_at(static_cast<uint32_t>(pixel), b_.h, b_.w);
        } else {
          const uint32_t row = p_.out_w.divide(static_cast<uint32_t>(pixel)), n = p_.out_h.divide(row);
          at = {static_cast<int>(n), static_cast<int>(row - n * b_.h.positions),
                static_cast<int>(pixel - static_cast<int64_t>(row) * b_.w.positions)};
        }
      }
      const int y = at.y * b_.h.step + b_.h.origin;
      y_[i] = pixel < end ? y : kOutside;
      x_[i] = at.x * b_.w.step + b_.w.origin;
      first_[i] = ((static_cast<int64_t>(at.n) * b_.h.image + y) * b_.w.image + x_[i]) * pitch_;
    }
  }

  const Conv2dProblem& p_;
  const GemmBlock& b_;
  const T* image_;
  int pitch_, channels_;
  bool vectors_;
  TapPosition tap_;
  // Each line's first tap: its place in the image, which may be outside, and elements from there to image_.
  int y_[Map::kCount], x_[Map::kCount];
  int64_t first_[Map::kCount];
};

// The matrix operand: weights, or grad_output in the weight's gradient.
template <typename T, Conv2dPass kPass, int kTileN, int kDepth>
class MatrixTile {
 public:
  using Map = TileMap<T, kTileN, kDepth, kPass == Conv2dPass::forward>;
  using Staged = Vec<T>[Map::kCount];

  __device__ MatrixTile(const Conv2dProblem& p, const GemmBlock& b) : p_(p), b_(b), depth_(b.depth_begin) {
    const int first = b.group * p.group_out;
    if constexpr (kPass == Conv2dPass::grad_weight) {
      matrix_ = static_cast<const T*>(p.grad_output) + first;
    } else {
      matrix_ = static_cast<const T*>(p.weight) + static_cast<int64_t>(first) * p.kernel_row;
    }
    if constexpr (kPass == Conv2dPass::grad_input) {
#pragma unroll
      for (int i = 0; i < Map::kCount; ++i)
        tap_[i] = tap_at(static_cast<int>(b.depth_begin) + Map::line(i), p.group_out, b.w.taps);
    }
  }

  __device__ void advance(int step) {
    depth_ = b_.depth_begin + static_cast<int64_t>(step) * kDepth;
    if constexpr (kPass == Conv2dPass::grad_input) {
#pragma unroll
      for (int i = 0; i < Map::kCount; ++i) tap_[i].add(kDepth, p_.group_out, b_.w.taps);
    }
  }

  __device__ void load(Staged& to) const {
    const bool vectors = kPass == Conv2dPass::grad_weight ? p_.out_vectors : p_.in_vectors;
#pragma unroll
    for (int i = 0; i < Map::kCount; ++i) {
      int64_t at, left;  // elements of the line from the thread's on
      if constexpr (kPass == Conv2dPass::forward) {
        const int k = b_.column + Map::line(i);
        at = static_cast<int64_t>(k) * p_.kernel_row + depth_ + Map::along();
        left = k < b_.columns ? b_.depth_end - depth_ - Map::along() : 0;
      } else if constexpr (kPass == Conv2dPass::grad_input) {
        const int kh = b_.h.first_tap + tap_[i].h * b_.h.kernel_step;
        const int kw = b_.w.first_tap + tap_[i].w * b_.w.kernel_step;
        const int c = b_.column + Map::along();
        at = static_cast<int64_t>(tap_[i].c) * p_.kernel_row + (kh * p_.w.kernel + kw) * p_.group_in + c;
        left = tap_[i].h < b_.h.taps ? b_.columns - c : 0;
      } else {
        const int64_t pixel = depth_ + Map::line(i);
        const int k = b_.column + Map::along();
        at = pixel * p_.out_channels + k;
        left = pixel < b_.depth_end ? b_.columns - k : 0;
      }
      to[i] = load_vector(matrix_ + at, left, vectors);
    }
  }

 private:
  const Conv2dProblem& p_;
  const GemmBlock& b_;
  const T* matrix_;
  int64_t depth_;
  TapPosition tap_[Map::kCount];  // of the lines of grad_input's depth
};

// Writes runs of the result, which is contiguous along the columns, or in the weight's gradient along the rows.
template <typename T, Conv2dPass kPass>
class GemmResult {
 public:
  using C = Compute<T>;
  static constexpr bool kAlongRows = kPass == Conv2dPass::grad_weight;

  __device__ GemmResult(const Conv2dProblem& p, const GemmBlock& b) : p_(p), b_(b) {}

  // kRun values from (row, column) of the tile on.
  template <int kRun>
  __device__ void store(int row, int column, const C* values) const {
    row += b_.row, column += b_.column;
    if (row >= b_.rows || column >= b_.columns) return;
    const int64_t at = b_.part * p_.part_size + offset(row, column);
    const int left = kAlongRows ? b_.rows - row : b_.columns - column;
    if (kAlongRows || p_.depth_parts > 1) {  // parts are neither rounded nor finished
      C sums[kRun];
#pragma unroll
      for (int i = 0; i < kRun; ++i) sums[i] = values[i];
      write(static_cast<C*>(p_.result) + at, sums, left);
    } else {
      T finished[kRun];
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        C bias = 0;
        if (kPass == Conv2dPass::forward && p_.bias != nullptr && i < left)
          bias = to_compute(static_cast<const T*>(p_.bias)[b_.group * p_.group_out + column + i]);
        finished[i] = from_compute<T>(finish(values[i], bias, kPass == Conv2dPass::forward && p_.relu));
      }
      write(static_cast<T*>(p_.result) + at, finished, left);
    }
  }

 private:
  template <typename Out, int kRun>
  __device__ void write(Out* to, const Out (&values)[kRun], int left) const {
    constexpr int kVec = kVector<Out>;
    const bool vectors = kPass == Conv2dPass::forward ? p_.out_vectors : p_.in_vectors;
    if (kRun % kVec == 0 && vectors && left >= kRun) {
#pragma unroll
      for (int first = 0; first < kRun; first += kVec) {
        Vec<Out> vec;
#pragma unroll
        for (int i = 0; i < kVec && first + i < kRun; ++i) vec[i] = values[first + i];
        store_global_vector(to + first, vec);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kRun; ++i)
        if (i < left) to[i] = values[i];
    }
  }

  __device__ int64_t offset(int row, int column) const {
    if constexpr (kAlongRows) {
      return static_cast<int64_t>(b_.group * p_.group_out + column) * p_.kernel_row + row;
    } else if constexpr (kPass == Conv2dPass::forward) {  // rows are the output's pixels
      return static_cast<int64_t>(row) * p_.out_channels + b_.group * b_.columns + column;
    } else {
      const Pixel at = pixel_at(static_cast<uint32_t>(row), b_.h, b_.w);
      return result_offset(at, b_.h, b_.w, p_.in_channels) + b_.group * b_.columns + column;
    }
  }

  const Conv2dProblem& p_;
  const GemmBlock& b_;
};

}  // namespace fastcnn::cuda
