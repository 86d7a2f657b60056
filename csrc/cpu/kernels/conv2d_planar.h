// Direct convolution to a handful of output channels (LeNet's): lanes are neighbouring positions of a plane, so that
// they are all in use, and a second phase interleaves the planes of results. Included once per instruction set.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

template <typename T, int Channels, int Vectors>
void conv2d_planar_tile(const Conv2dPlanarArgs<T>& a, int64_t position) {
  using V = Vec<T>;
  typename V::Reg acc[Channels][Vectors];
#pragma GCC unroll 8
  for (int k = 0; k < Channels; ++k)
#pragma GCC unroll 12
    for (int v = 0; v < Vectors; ++v) acc[k][v] = V::zero();
  const Compute<T>* w = a.weight;
  for (int64_t r = 0; r < a.reduction; ++r, w += Channels) {
    const Compute<T>* in = a.planes + a.offsets[r] + position;
    typename V::Reg x[Vectors];
#pragma GCC unroll 12
    for (int v = 0; v < Vectors; ++v) x[v] = V::load(in + v * V::kWidth);
#pragma GCC unroll 8
    for (int k = 0; k < Channels; ++k) {
      const typename V::Reg wk = V::broadcast(w[k]);
#pragma GCC unroll 12
      for (int v = 0; v < Vectors; ++v) acc[k][v] = V::fmadd(x[v], wk, acc[k][v]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < Channels; ++k) {
    const typename V::Reg bias = a.bias != nullptr ? V::broadcast(widen(a.bias[k])) : V::zero();
#pragma GCC unroll 12
    for (int v = 0; v < Vectors; ++v) {
      const typename V::Reg y = V::add(acc[k][v], bias);
      V::store(a.results + k * a.result_stride + position + v * V::kWidth, a.relu ? V::relu(y) : y);
    }
  }
}

// Interleaves a row's planes of results: a square of positions times channels at a time. A whole register is stored at
// each position of a dense row, and what it holds beyond the channels is overwritten by the positions that follow.
template <typename T>
void conv2d_planar_interleave(const Conv2dPlanarArgs<T>& a, int64_t row) {
  using V = Vec<T>;
  constexpr int kWidth = V::kWidth;
  const Compute<T>* results = a.results + row * a.row_stride;
  T* out = a.output + row * a.out_stride_h;
  const bool overlaps = a.out_stride_w == a.channels && a.channels <= kWidth;
  for (int64_t j = 0; j < a.cols; j += kWidth) {
    const int n = static_cast<int>(a.cols - j < kWidth ? a.cols - j : kWidth);
    for (int k = 0; k < a.channels; k += kWidth) {
      const int channels = a.channels - k < kWidth ? a.channels - k : kWidth;
      typename V::Reg square[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i)
        square[i] = i < channels ? V::load(results + (k + i) * a.result_stride + j) : V::zero();
      V::transpose(square);
      T* at = out + j * a.out_stride_w + k;
      if (overlaps && (a.cols - j - kWidth + 1) * a.channels >= kWidth) {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) V::store(at + i * a.channels, square[i]);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i)
          if (i < n) V::store_first(at + i * a.out_stride_w, square[i], channels);
      }
    }
  }
}

template <typename T, int Channels>
void conv2d_planar_channels(const Conv2dPlanarArgs<T>& a) {
  if (a.channels == Channels) {
    constexpr int kAccumulators = kMaxVectors * rows_for(kMaxVectors);
    constexpr int kVectors = kAccumulators / Channels < 1   ? 1
                             : kAccumulators / Channels > 6 ? 6
                                                            : kAccumulators / Channels;
    constexpr int64_t kTile = kVectors * Vec<T>::kWidth;
    const int64_t positions = (a.rows - 1) * a.row_stride + a.cols;
    int64_t p = 0;
    for (; p + kTile <= positions; p += kTile) conv2d_planar_tile<T, Channels, kVectors>(a, p);
    for (; p < positions; p += Vec<T>::kWidth) conv2d_planar_tile<T, Channels, 1>(a, p);
    for (int64_t row = 0; row < a.rows; ++row) conv2d_planar_interleave(a, row);
  } else if constexpr (Channels > 1) {
    conv2d_planar_channels<T, Channels - 1>(a);
  }
}

template <typename T>
void conv2d_planar(const Conv2dPlanarArgs<T>& a) {
  conv2d_planar_channels<T, kPlanarChannels>(a);
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
