// Depthwise convolution: lanes are channels, so nothing is shared between lanes and no packing is needed. A tile of
// neighbouring positions of a row takes each weight, and where it lies inside the image each input, from memory once
// for several products. Included once per instruction set.

// The sums of a tile live in registers only where every part of it is inlined.
#define FASTCNN_INLINE inline __attribute__((always_inline))

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// Positions of a tile: with three weights and an input they fit the registers.
constexpr int kDepthwiseCols = kMaxVectors == 4 ? 8 : 6, kDepthwiseGradCols = 4;

// What a tile reads. In a plain one all windows lie inside the image's columns, and the register of channels is whole;
// else columns outside [0, width) are zeros, and so are lanes from `lanes` on.
template <typename T, bool Plain>
struct DepthwiseRow {
  using V = Vec<T>;
  const T* data;
  int64_t pixel, width;
  int lanes;

  FASTCNN_INLINE typename V::Reg at(int64_t w) const {
    if (Plain) return V::load(data + w * pixel);
    return w >= 0 && w < width ? V::load_first(data + w * pixel, lanes) : V::zero();
  }
  FASTCNN_INLINE typename V::Reg weight(const T* p) const { return Plain ? V::load(p) : V::load_first(p, lanes); }
};

// Adds the products of `Taps` neighbouring weights at all positions, `Step` columns apart (0: `step` apart, one tap).
template <int Taps, int Step, typename T, bool Plain, int Cols>
FASTCNN_INLINE void depthwise_taps(const DepthwiseRow<T, Plain>& row, int64_t w, int64_t step, const T* weights,
                                   int64_t weight_step, typename Vec<T>::Reg (&acc)[Cols]) {
  using V = Vec<T>;
  typename V::Reg weight[Taps];
#pragma GCC unroll 3
  for (int k = 0; k < Taps; ++k) weight[k] = row.weight(weights + k * weight_step);
  if constexpr (Step == 0) {
#pragma GCC unroll 8
    for (int m = 0; m < Cols; ++m) acc[m] = V::fmadd(row.at(w + m * step), weight[0], acc[m]);
  } else {
#pragma GCC unroll 18
    for (int j = 0; j < (Cols - 1) * Step + Taps; ++j) {
      if (Step > Taps && j % Step >= Taps) continue;
      const typename V::Reg in = row.at(w + j);
#pragma GCC unroll 8
      for (int m = 0; m < Cols; ++m)
        if (j - m * Step >= 0 && j - m * Step < Taps) acc[m] = V::fmadd(in, weight[j - m * Step], acc[m]);
    }
  }
}

template <typename T, int Step, bool Plain, int Cols>
FASTCNN_INLINE void depthwise_tile(const Conv2dDepthwiseArgs<T>& a, const T* image, int64_t h0, int64_t w0, int64_t c,
                                   int lanes, typename Vec<T>::Reg (&acc)[Cols]) {
  for (int64_t r = 0; r < a.num_runs; ++r) {
    const Conv2dDepthwiseRun run = a.runs[r];
    if (h0 + run.h < 0 || h0 + run.h >= a.in_h) continue;
    const DepthwiseRow<T, Plain> row{image + (h0 + run.h) * a.in_stride_h + c, a.in_stride_w, a.in_w, lanes};
    const T* weights = a.weight + run.weight_offset + c;
    int64_t k = 0;
    if constexpr (Step != 0)
      for (; k + 3 <= run.count; k += 3)
        depthwise_taps<3, Step>(row, w0 + run.w + k, a.step_w, weights + k * run.weight_step, run.weight_step, acc);
    for (; k < run.count; ++k)
      depthwise_taps<1, Step>(row, w0 + run.w + k, a.step_w, weights + k * run.weight_step, run.weight_step, acc);
  }
}

template <typename T, bool Plain, int Cols>
FASTCNN_INLINE void depthwise_tile_of_step(const Conv2dDepthwiseArgs<T>& a, const T* image, int64_t h0, int64_t w0,
                                           int64_t c, int lanes, typename Vec<T>::Reg (&acc)[Cols]) {
  if (a.step_w == 1) {
    depthwise_tile<T, 1, Plain>(a, image, h0, w0, c, lanes, acc);
  } else if (a.step_w == 2) {
    depthwise_tile<T, 2, Plain>(a, image, h0, w0, c, lanes, acc);
  } else {
    depthwise_tile<T, 0, Plain>(a, image, h0, w0, c, lanes, acc);
  }
}

template <typename T>
void conv2d_depthwise(const Conv2dDepthwiseArgs<T>& a) {
  using V = Vec<T>;
  constexpr int kCols = kDepthwiseCols;
  const Rectifier<T> rectify(a.activation);
  for (int64_t row = a.row_begin; row < a.row_end; ++row) {
    const int64_t n = row / a.out_h, i = row % a.out_h, h0 = i * a.step_h;
    const T* image = a.input + n * a.in_stride_n;
    for (int64_t tile = 0; tile < a.out_w; tile += kCols) {
      // The last tile of a row overlaps the one before.
      const int64_t j = tile + kCols > a.out_w && a.out_w >= kCols ? a.out_w - kCols : tile, w0 = j * a.step_w;
      const int cols = static_cast<int>(a.out_w - j < kCols ? a.out_w - j : kCols);
      const bool inside = cols == kCols && w0 + a.first_w >= 0 && w0 + (kCols - 1) * a.step_w + a.last_w < a.in_w;
      T* out = a.output + n * a.out_stride_n + i * a.out_stride_h + j * a.out_stride_w;
      for (int64_t c = 0; c < a.channels; c += V::kWidth) {
        const int lanes = static_cast<int>(a.channels - c < V::kWidth ? a.channels - c : V::kWidth);
        typename V::Reg acc[kCols];
        const typename V::Reg bias = a.bias != nullptr ? V::load_first(a.bias + c, lanes) : V::zero();
#pragma GCC unroll 8
        for (int m = 0; m < kCols; ++m) acc[m] = bias;
        inside&& lanes == V::kWidth ? depthwise_tile_of_step<T, true>(a, image, h0, w0, c, lanes, acc)
                                    : depthwise_tile_of_step<T, false>(a, image, h0, w0, c, lanes, acc);
#pragma GCC unroll 8
        for (int m = 0; m < kCols; ++m)
          if (m < cols) V::store_first(out + m * a.out_stride_w + c, rectify(acc[m]), lanes);
      }
    }
    finish_activation<T>(
        {a.output + n * a.out_stride_n + i * a.out_stride_h, a.out_stride_w, a.out_w, a.channels, a.activation});
  }
}

// The products of a row of grad_output's positions, whose taps lie inside the image, with `Taps` neighbouring inputs of
// each, `Step` columns from one position to the next; for one whole register of channels.
template <typename T, int Taps, int Step>
FASTCNN_INLINE void depthwise_grad_weight_inside(const Conv2dDepthwiseGradWeightArgs<T>& a, const T* x, const T* grad,
                                                 int64_t positions, typename Vec<T>::Reg (&acc)[Taps][2]) {
  using V = Vec<T>;
  constexpr int kCols = kDepthwiseGradCols;
  for (int64_t p = 0; p + kCols <= positions; p += kCols, x += kCols * Step * a.channels) {
    typename V::Reg g[kCols];
#pragma GCC unroll 4
    for (int m = 0; m < kCols; ++m) g[m] = V::load(grad + (p + m) * a.channels);
#pragma GCC unroll 9
    for (int j = 0; j < (kCols - 1) * Step + Taps; ++j) {
      if (Step > Taps && j % Step >= Taps) continue;
      const typename V::Reg in = V::load(x + j * a.channels);
#pragma GCC unroll 4
      for (int m = 0; m < kCols; ++m)
        if (j - m * Step >= 0 && j - m * Step < Taps)
          acc[j - m * Step][m % 2] = V::fmadd(in, g[m], acc[j - m * Step][m % 2]);
    }
  }
}

// Adds the products of a row of grad_output and one of the input, for `Taps` weights from kernel column kw on.
template <typename T, int Taps>
void depthwise_grad_weight_row(const Conv2dDepthwiseGradWeightArgs<T>& a, const T* x, int64_t kw, const T* grad,
                               int lanes, Compute<T>* sums) {
  using V = Vec<T>;
  typename V::Reg acc[Taps][2];
#pragma GCC unroll 3
  for (int k = 0; k < Taps; ++k) acc[k][0] = acc[k][1] = V::zero();
  // 1. The positions whose taps all lie inside, in whole tiles.
  const int64_t first = kw * a.dilation_w - a.pad_w;
  int64_t begin = 0, end = 0;
  if (lanes == V::kWidth && (Taps == 1 || a.dilation_w == 1) && a.stride_w <= 2 && first + Taps <= a.in_w) {
    begin = first < 0 ? (-first + a.stride_w - 1) / a.stride_w : 0;
    end = (a.in_w - Taps - first) / a.stride_w + 1;
    end = end < a.out_w ? end : a.out_w;
    end = begin < end ? begin + (end - begin) / kDepthwiseGradCols * kDepthwiseGradCols : begin;
    const T* at = x + (begin * a.stride_w + first) * a.channels;
    a.stride_w == 1 ? depthwise_grad_weight_inside<T, Taps, 1>(a, at, grad + begin * a.channels, end - begin, acc)
                    : depthwise_grad_weight_inside<T, Taps, 2>(a, at, grad + begin * a.channels, end - begin, acc);
  }
  // 2. The others, where inputs outside the image take no part.
  for (int64_t ow = 0; ow < a.out_w; ++ow) {
    if (ow == begin) ow = end;
    if (ow >= a.out_w) break;
    const typename V::Reg g = V::load_first(grad + ow * a.channels, lanes);
#pragma GCC unroll 3
    for (int k = 0; k < Taps; ++k) {
      const int64_t iw = ow * a.stride_w + first + k * a.dilation_w;
      if (iw >= 0 && iw < a.in_w) acc[k][0] = V::fmadd(V::load_first(x + iw * a.channels, lanes), g, acc[k][0]);
    }
  }
#pragma GCC unroll 3
  for (int k = 0; k < Taps; ++k) {
    Compute<T>* sum = sums + (kw + k) * a.channels;
    V::store_first(sum, V::add(V::load_first(sum, lanes), V::add(acc[k][0], acc[k][1])), lanes);
  }
}

template <typename T>
void conv2d_depthwise_grad_weight(const Conv2dDepthwiseGradWeightArgs<T>& a) {
  using V = Vec<T>;
  for (int64_t row = a.row_begin; row < a.row_end; ++row) {
    const int64_t n = row / a.out_h, oh = row % a.out_h;
    for (int64_t c = 0; c < a.channels; c += V::kWidth) {
      const int lanes = static_cast<int>(a.channels - c < V::kWidth ? a.channels - c : V::kWidth);
      const T* grad = a.grad_output + row * a.out_w * a.channels + c;
      for (int64_t kh = 0; kh < a.kernel_h; ++kh) {
        const int64_t ih = oh * a.stride_h - a.pad_h + kh * a.dilation_h;
        if (ih < 0 || ih >= a.in_h) continue;
        const T* x = a.input + (n * a.in_h + ih) * a.in_w * a.channels + c;
        Compute<T>* sums = a.sums + kh * a.kernel_w * a.channels + c;
        int64_t kw = 0;
        for (; kw + 3 <= a.kernel_w; kw += 3) depthwise_grad_weight_row<T, 3>(a, x, kw, grad, lanes, sums);
        for (; kw < a.kernel_w; ++kw) depthwise_grad_weight_row<T, 1>(a, x, kw, grad, lanes, sums);
      }
    }
  }
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA

#undef FASTCNN_INLINE
