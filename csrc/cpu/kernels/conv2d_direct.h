// Direct convolution as a gather and a register-tiled product (Zhang et al., High Performance Zero-Memory Overhead
// Direct Convolutions, ICML 2018): a tile of pixels times registers of output channels stays in registers over the
// whole reduction. Included once per instruction set, after its vec_*.h.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

template <typename T, int Rows, int Vectors>
void conv2d_direct_tile(const Conv2dDirectArgs<T>& a, int64_t pixel) {
  using V = Vec<T>;
  using Reg = typename V::Reg;
  constexpr int kWidth = V::kWidth;

  // 1. Fetch the output's lines: stores that miss would stall the next tile.
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v)
      __builtin_prefetch(a.output + a.output_offsets[pixel + m] + v * kWidth, /*for writing=*/1);

  // 2. Accumulate, in partial sums that the segments' flush marks end.
  Reg acc[Rows][Vectors];
  Compute<T> partial[Rows * Vectors * kWidth];
  bool has_partial = false;
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[m][v] = V::zero();

  for (int64_t s = 0; s < a.num_segments; ++s) {
    const Conv2dSegment segment = a.segments[s];
    const Compute<T>* w = a.weight + segment.weight * (Vectors * kWidth);
    const Compute<T>* in[Rows];
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) in[m] = a.input + a.input_offsets[pixel + m] + segment.offset;
    for (int64_t i = 0; i < segment.length; ++i) {
      Reg wv[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) wv[v] = V::load(w + v * kWidth);
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
        const Reg x = V::broadcast(in[m][i]);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) acc[m][v] = V::dot(x, wv[v], acc[m][v]);
      }
      w += Vectors * kWidth;
    }
    if (segment.flush) {
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
          Compute<T>* p = partial + (m * Vectors + v) * kWidth;
          V::store(p, has_partial ? V::add(V::load(p), acc[m][v]) : acc[m][v]);
          acc[m][v] = V::zero();
        }
      has_partial = true;
    }
  }

  // 3. Epilogue: partial sums, bias, residual, rectifier, store.
  const int last = static_cast<int>(a.channels - (Vectors - 1) * kWidth);
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    const bool whole = v < Vectors - 1 || last == kWidth;
    Reg bias = V::zero();
    if (a.bias != nullptr) bias = whole ? V::load(a.bias + v * kWidth) : V::load_first(a.bias + v * kWidth, last);
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      Reg y = acc[m][v];
      if (has_partial) y = V::add(y, V::load(partial + (m * Vectors + v) * kWidth));
      y = V::add(y, bias);
      if (a.residual != nullptr) {
        const T* residual = a.residual + a.residual_offsets[pixel + m] + v * kWidth;
        y = V::add(y, whole ? V::load(residual) : V::load_first(residual, last));
      }
      y = rectify<V>(a.activation, y);
      T* out = a.output + a.output_offsets[pixel + m] + v * kWidth;
      if (whole) {
        V::store(out, y);
      } else {
        V::store_first(out, y, last);
      }
    }
  }
}

template <typename T>
void conv2d_direct(const Conv2dDirectArgs<T>& a) {
  with_count<kMaxVectors>(a.vectors, [&]<int Vectors>() {
    over_tiles<rows_for(Vectors)>(a.pixels,
                                  [&]<int Rows>(int64_t pixel) { conv2d_direct_tile<T, Rows, Vectors>(a, pixel); });
  });
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
