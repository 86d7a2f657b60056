// Pooling: what max and average share, then the kernels. Included once per instruction set.
// Register stores may alias anything, so the inner functions take their arguments by value and lambdas are inlined:
// otherwise every size is read from memory again after each store.

#define FASTCNN_INLINE __attribute__((always_inline))

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// Runs work(c, lanes, Block) over the channels: whole blocks of four registers, single registers, and what is left.
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

template <typename T, typename Work>
FASTCNN_INLINE inline void over_channels(int64_t channels, const Work& work) {
  constexpr int kWidth = Vec<T>::kWidth;
  int64_t c = 0;
  for (; c + 4 * kWidth <= channels; c += 4 * kWidth) work(c, kWidth, ChannelBlock<4, false>{});
  for (; c + kWidth <= channels; c += kWidth) work(c, kWidth, ChannelBlock<1, false>{});
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
// window; `pixel` is its place in the output, `first` its first pixel in the gradient. Pixels under none get zero.
template <typename T, typename Fill>
FASTCNN_INLINE inline void over_disjoint_windows(const Pool2dDisjointArgs<T> a, const Fill& fill) {
  const int64_t pitch = a.in_w * a.channels;
  for (int64_t row = a.row_begin; row < a.row_end; ++row) {
    // 1. The input rows that this output row owns, and those of them that no window covers.
    const int64_t n = row / a.out_h, oh = row % a.out_h;
    const PoolWindow rows = a.rows[oh];
    const int64_t own_begin = oh == 0 ? 0 : rows.begin, own_end = oh + 1 == a.out_h ? a.in_h : a.rows[oh + 1].begin;
    T* image = a.grad_input + n * a.in_h * pitch;
    fill_zero(image + own_begin * pitch, (rows.begin - own_begin) * pitch);
    fill_zero(image + (rows.begin + rows.count) * pitch, (own_end - rows.begin - rows.count) * pitch);

    // 2. The windows, and the columns between them.
    T* first_row = image + rows.begin * pitch;
    const auto zero_columns = [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < rows.count; ++i)
        fill_zero(first_row + i * pitch + begin * a.channels, (end - begin) * a.channels);
    };
    int64_t next = 0;
    for (int64_t ow = 0; ow < a.out_w; ++ow) {
      const PoolWindow cols = a.cols[ow];
      if (cols.begin > next) zero_columns(next, cols.begin);
      fill(rows, cols, row * a.out_w + ow, first_row + cols.begin * a.channels);
      next = cols.begin + cols.count;
    }
    if (a.in_w > next) zero_columns(next, a.in_w);
  }
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA

#include "avg_pool2d.h"
#include "max_pool2d.h"
