// Pooling: what max and average share, then the kernels. Included once per instruction set.
// Register stores may alias anything, so the inner functions take their arguments by value and lambdas are inlined:
// otherwise every size is read from memory again after each store.

#define FASTCNN_INLINE __attribute__((always_inline))

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// A block of channels: whole registers, or the first lanes of one.
template <int Vectors, bool Partial>
struct ChannelBlock {
  static constexpr int kVectors = Vectors;
  template <typename T>
  static typename Vec<T>::Reg load(const T* p, int v, int lanes) {
    if constexpr (Partial) return Vec<T>::load_first(p, lanes);
    return Vec<T>::load(p + v * Vec<T>::kWidth);
  }
  template <typename T>
  static void store(T* p, typename Vec<T>::Reg a, int v, int lanes) {
    if constexpr (Partial) {
      Vec<T>::store_first(p, a, lanes);
    } else {
      Vec<T>::store(p + v * Vec<T>::kWidth, a);
    }
  }
};

// Runs work(c, lanes, block) over the channels: blocks of four registers, then two, one, and what is left. Four
// share a window's loops and addresses; max pooling holds two values a register, 12 of AVX2's 16 in all.
template <typename T, typename Work>
FASTCNN_INLINE inline void over_channels(int64_t channels, const Work& work) {
  constexpr int kWidth = Vec<T>::kWidth;
  int64_t c = 0;
  for (; c + 4 * kWidth <= channels; c += 4 * kWidth) work(c, kWidth, ChannelBlock<4, false>{});
  if (c + 2 * kWidth <= channels) {
    work(c, kWidth, ChannelBlock<2, false>{});
    c += 2 * kWidth;
  }
  if (c + kWidth <= channels) {
    work(c, kWidth, ChannelBlock<1, false>{});
    c += kWidth;
  }
  if (c < channels) work(c, static_cast<int>(channels - c), ChannelBlock<1, true>{});
}

// The taps of one window: known while compiling where these are not 0, so that loops over them are unrolled and each
// tap's loads are a stream of their own to the prefetcher.
template <int kRows, int kCols>
struct WindowShape {
  int64_t row_count, col_count;
  int64_t rows() const { return kRows > 0 ? kRows : row_count; }
  int64_t cols() const { return kCols > 0 ? kCols : col_count; }
};

template <typename Work>
FASTCNN_INLINE inline void with_shape(const PoolWindow& rows, const PoolWindow& cols, const Work& work) {
  if (rows.count == 2 && cols.count == 2) {
    work(WindowShape<2, 2>{});
  } else if (rows.count == 3 && cols.count == 3) {
    work(WindowShape<3, 3>{});
  } else {
    work(WindowShape<0, 0>{rows.count, cols.count});
  }
}

template <typename T>
inline void fill_zero(T* p, int64_t count) {
  using V = Vec<T>;
  int64_t i = 0;
  for (; i + V::kWidth <= count; i += V::kWidth) V::store(p + i, V::zero());
  if (i < count) V::store_first(p + i, V::zero(), static_cast<int>(count - i));
}

// Writes the gradient where no pixel lies under two windows: fill(rows, cols, pixel, first) writes the pixels under one
// window; `pixel` is its place in the output, `first` its first pixel in the gradient. Pixels under none get zero: they
// follow a window, because undilated windows start at the image's first pixel.
template <typename T, typename Fill>
FASTCNN_INLINE inline void over_disjoint_windows(const Pool2dDisjointArgs<T> a, const Fill& fill) {
  const int64_t pitch = a.in_w * a.channels;
  for (int64_t row = a.row_begin; row < a.row_end; ++row) {
    const int64_t n = row / a.out_h, oh = row % a.out_h;
    const PoolWindow rows = a.rows[oh];
    const int64_t rows_end = rows.begin + rows.count;
    const int64_t next_row = oh + 1 < a.out_h ? a.rows[oh + 1].begin : a.in_h;
    T* image = a.grad_input + n * a.in_h * pitch;
    for (int64_t ow = 0; ow < a.out_w; ++ow) {
      const PoolWindow cols = a.cols[ow];
      fill(rows, cols, row * a.out_w + ow, image + rows.begin * pitch + cols.begin * a.channels);
      const int64_t cols_end = cols.begin + cols.count;
      const int64_t next_col = ow + 1 < a.out_w ? a.cols[ow + 1].begin : a.in_w;
      if (cols_end < next_col)
        for (int64_t ih = rows.begin; ih < rows_end; ++ih)
          fill_zero(image + ih * pitch + cols_end * a.channels, (next_col - cols_end) * a.channels);
    }
    fill_zero(image + rows_end * pitch, (next_row - rows_end) * pitch);
  }
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA

#include "avg_pool2d.h"
#include "max_pool2d.h"
