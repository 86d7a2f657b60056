// Pixels of neighbouring channels become planes of one channel each, and planes pixels, on their way into and out of
// the planar kernels. Included once per instruction set.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// Where the lanes of `Count` registers go that hold pixels of that many channels, on their way to one register a
// channel or back: result r is register 0, into which step s merges lanes of register s + 1.
template <int Count, int Width, bool ToPlanes>
struct ChannelLanes {
  int32_t lanes[Count][Count - 1][Width];

  constexpr ChannelLanes() : lanes() {
    for (int r = 0; r < Count; ++r)
      for (int lane = 0; lane < Width; ++lane) {
        const int element = ToPlanes ? lane * Count + r : r * Width + lane;
        const int source = ToPlanes ? element / Width : element % Count;
        const int from = ToPlanes ? element % Width : element / Count;
        for (int s = 0; s < Count - 1; ++s) lanes[r][s][lane] = source == s + 1 ? Width + from : s == 0 ? from : lane;
      }
  }
};

template <typename V, int Count, bool ToPlanes>
void permute_channels(const typename V::Reg (&in)[Count], typename V::Reg (&out)[Count]) {
  if constexpr (Count == 1) {
    out[0] = in[0];
  } else {
    static constexpr ChannelLanes<Count, V::kWidth, ToPlanes> table;
#pragma GCC unroll 8
    for (int r = 0; r < Count; ++r) {
      out[r] = in[0];
#pragma GCC unroll 8
      for (int s = 0; s < Count - 1; ++s) out[r] = V::permute(out[r], in[s + 1], table.lanes[r][s]);
    }
  }
}

// One register a channel of `n` pixels at source, the lanes beyond them zero, into planes at target.
template <typename T>
void conv2d_planes_transposed(const Conv2dPlanesArgs<T>& a, const T* source, Compute<T>* target, int n) {
  using V = Vec<T>;
  constexpr int kWidth = V::kWidth;
  for (int64_t k = 0; k < a.channels; k += kWidth) {
    const int channels = static_cast<int>(a.channels - k < kWidth ? a.channels - k : kWidth);
    typename V::Reg square[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i)
      square[i] = i < n ? V::load_first(source + i * a.source_stride_w + k, channels) : V::zero();
    V::transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i)
      if (i < channels) V::store(target + (k + i) * a.plane_stride, square[i]);
  }
}

template <typename T, int Channels>
void conv2d_planes_permuted(const Conv2dPlanesArgs<T>& a, const T* source, Compute<T>* target, int n) {
  using V = Vec<T>;
  constexpr int kWidth = V::kWidth;
  typename V::Reg in[Channels], out[Channels];
#pragma GCC unroll 8
  for (int v = 0; v < Channels; ++v) {
    const int left = n * Channels - v * kWidth;
    in[v] = left >= kWidth ? V::load(source + v * kWidth)
            : left > 0     ? V::load_first(source + v * kWidth, left)
                           : V::zero();
  }
  permute_channels<V, Channels, true>(in, out);
#pragma GCC unroll 8
  for (int k = 0; k < Channels; ++k) V::store(target + k * a.plane_stride, out[k]);
}

// Channels is 0 for any number of them, which need not fill a pixel.
template <typename T, int Channels>
void conv2d_planes_rows(const Conv2dPlanesArgs<T>& a) {
  using V = Vec<T>;
  constexpr int kWidth = V::kWidth;
  const int64_t whole = (a.cols + kWidth - 1) / kWidth * kWidth;
  for (int64_t row = 0; row < a.rows; ++row) {
    const T* source = a.source + row * a.source_stride_h;
    Compute<T>* target = a.planes + row * a.row_stride;
    for (int64_t k = 0; k < a.channels; ++k)
      for (int64_t x = 0; x < a.first_col; x += kWidth) V::store(target + k * a.plane_stride + x, V::zero());
    target += a.first_col;
    for (int64_t j = 0; j < a.cols; j += kWidth) {
      const int n = static_cast<int>(a.cols - j < kWidth ? a.cols - j : kWidth);
      if constexpr (Channels == 0) {
        conv2d_planes_transposed(a, source + j * a.source_stride_w, target + j, n);
      } else {
        conv2d_planes_permuted<T, Channels>(a, source + j * Channels, target + j, n);
      }
    }
    for (int64_t k = 0; k < a.channels; ++k)
      for (int64_t x = whole; x < a.row_stride - a.first_col; x += kWidth)
        V::store(target + k * a.plane_stride + x, V::zero());
  }
}

template <typename T, int Channels>
void conv2d_planes_channels(const Conv2dPlanesArgs<T>& a) {
  if constexpr (Channels > 0) {
    if (a.channels == Channels && a.source_stride_w == Channels) return conv2d_planes_rows<T, Channels>(a);
    conv2d_planes_channels<T, Channels - 1>(a);
  } else {
    conv2d_planes_rows<T, 0>(a);
  }
}

template <typename T>
void conv2d_planes(const Conv2dPlanesArgs<T>& a) {
  conv2d_planes_channels<T, Vec<T>::kPermutes ? kPlanarChannels : 1>(a);
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
