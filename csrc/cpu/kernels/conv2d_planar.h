// Direct convolution to a handful of output channels (LeNet's): lanes are neighbouring positions of a plane, so that
// they are all in use, and a second phase interleaves the planes of results. The gradient of its weight: lanes are
// positions as well, and are added up at the end. Included once per instruction set, after conv2d_planes.h.

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
  const Rectifier<T> rectify(a.activation);
#pragma GCC unroll 8
  for (int k = 0; k < Channels; ++k) {
    const typename V::Reg bias = a.bias != nullptr ? V::broadcast(widen(a.bias[k])) : V::zero();
#pragma GCC unroll 12
    for (int v = 0; v < Vectors; ++v) {
      V::store(a.results + k * a.result_stride + position + v * V::kWidth, rectify(V::add(acc[k][v], bias)));
    }
  }
}

// Interleaves a row's planes of results. The last group of a dense row ends with it, so that whole registers are
// stored.
template <typename T, int Channels>
void conv2d_planar_interleave_dense(const Conv2dPlanarArgs<T>& a, int64_t row) {
  using V = Vec<T>;
  constexpr int kWidth = V::kWidth;
  const Compute<T>* results = a.results + row * a.row_stride;
  T* out = a.output + row * a.out_stride_h;
  for (int64_t j = 0; j < a.cols; j += kWidth) {
    const int64_t first = j + kWidth <= a.cols || a.cols < kWidth ? j : a.cols - kWidth;
    typename V::Reg in[Channels], pixels[Channels];
#pragma GCC unroll 8
    for (int k = 0; k < Channels; ++k) in[k] = V::load(results + k * a.result_stride + first);
    permute_channels<V, Channels, false>(in, pixels);
    T* at = out + first * Channels;
    const int64_t elements = (a.cols - first) * Channels;
#pragma GCC unroll 8
    for (int v = 0; v < Channels; ++v) {
      if (elements >= (v + 1) * kWidth) {
        V::store(at + v * kWidth, pixels[v]);
      } else if (elements > v * kWidth) {
        V::store_first(at + v * kWidth, pixels[v], static_cast<int>(elements - v * kWidth));
      }
    }
  }
}

// Likewise a square of positions times channels at a time. A whole register is stored at each position of a dense row,
// and what it holds beyond the channels is overwritten by the positions that follow.
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
  constexpr int kAccumulators = kMaxVectors * rows_for(kMaxVectors);
  constexpr int kVectors = kAccumulators / Channels < 1   ? 1
                           : kAccumulators / Channels > 6 ? 6
                                                          : kAccumulators / Channels;
  constexpr int64_t kTile = kVectors * Vec<T>::kWidth;
  const int64_t positions = (a.rows - 1) * a.row_stride + a.cols;
  int64_t p = 0;
  for (; p + Vec<T>::kWidth < positions; p += kTile) conv2d_planar_tile<T, Channels, kVectors>(a, p);
  if (p < positions) conv2d_planar_tile<T, Channels, 1>(a, p);
  for (int64_t row = 0; row < a.rows; ++row) {
    if constexpr (Vec<T>::kPermutes)
      if (a.out_stride_w == Channels) {
        conv2d_planar_interleave_dense<T, Channels>(a, row);
        continue;
      }
    conv2d_planar_interleave(a, row);
  }
  const bool dense = a.out_stride_h == a.cols * a.out_stride_w;
  for (int64_t row = 0; row < (dense ? 1 : a.rows); ++row)
    finish_activation<T>(
        {a.output + row * a.out_stride_h, a.out_stride_w, dense ? a.rows * a.cols : a.cols, Channels, a.activation});
}

template <typename T>
void conv2d_planar(const Conv2dPlanarArgs<T>& a) {
  with_count<kPlanarChannels>(a.channels, [&]<int Channels>() { conv2d_planar_channels<T, Channels>(a); });
}

// Taps times channels in registers over all positions. Of rows that are no whole registers, lanes of the input beyond
// the last position are left out: they may hold what no window reads, even NaN.
template <typename T, int Channels, int Taps>
void conv2d_planar_grad_weight_tile(const Conv2dPlanarGradWeightArgs<T>& a, int64_t tap) {
  using V = Vec<T>;
  using Reg = typename V::Reg;
  constexpr int kWidth = V::kWidth;
  Reg acc[Taps][Channels];
  const T* in[Taps];
#pragma GCC unroll 8
  for (int t = 0; t < Taps; ++t) {
    in[t] = a.planes + a.offsets[tap + t];
#pragma GCC unroll 8
    for (int k = 0; k < Channels; ++k) acc[t][k] = V::zero();
  }
  const auto add = [&](int64_t position, const T* grad, auto load) __attribute__((always_inline)) {
    if constexpr (Channels < Taps) {  // the fewer of the two stay in registers
      Reg g[Channels];
#pragma GCC unroll 8
      for (int k = 0; k < Channels; ++k) g[k] = V::load(grad + k * a.grad_stride);
#pragma GCC unroll 8
      for (int t = 0; t < Taps; ++t) {
        const Reg x = load(in[t] + position);
#pragma GCC unroll 8
        for (int k = 0; k < Channels; ++k) acc[t][k] = V::fmadd(x, g[k], acc[t][k]);
      }
    } else {
      Reg x[Taps];
#pragma GCC unroll 8
      for (int t = 0; t < Taps; ++t) x[t] = load(in[t] + position);
#pragma GCC unroll 8
      for (int k = 0; k < Channels; ++k) {
        const Reg g = V::load(grad + k * a.grad_stride);
#pragma GCC unroll 8
        for (int t = 0; t < Taps; ++t) acc[t][k] = V::fmadd(x[t], g, acc[t][k]);
      }
    }
  };
  const int last = static_cast<int>(a.cols % kWidth);
  const T* grad = a.grad;
  for (int64_t row = 0; row < a.rows; ++row) {
    int64_t position = row * a.row_stride;
    const int64_t end = position + a.cols - last;
    for (; position < end; position += kWidth, grad += kWidth)
      add(position, grad, [](const T* p) { return V::load(p); });
    if (last == 0) continue;
    add(position, grad, [=](const T* p) { return V::load_first(p, last); });
    grad += kWidth;
  }
#pragma GCC unroll 8
  for (int t = 0; t < Taps; ++t)
#pragma GCC unroll 8
    for (int k = 0; k < Channels; ++k) {
      T* sum = a.sums + ((tap + t) * Channels + k) * kWidth;
      V::store(sum, V::add(V::load(sum), acc[t][k]));
    }
}

template <typename T>
void conv2d_planar_grad_weight(const Conv2dPlanarGradWeightArgs<T>& a) {
  with_count<kPlanarChannels>(a.channels, [&]<int Channels>() {
    over_tiles<planar_grad_weight_taps(kMaxVectors * rows_for(kMaxVectors), Channels)>(
        a.taps, [&]<int Taps>(int64_t tap) { conv2d_planar_grad_weight_tile<T, Channels, Taps>(a, tap); });
  });
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
