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

  // 3. Epilogue: partial sums, bias, ReLU, store.
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
      if (a.relu) y = V::relu(y);
      T* out = a.output + a.output_offsets[pixel + m] + v * kWidth;
      if (whole) {
        V::store(out, y);
      } else {
        V::store_first(out, y, last);
      }
    }
  }
}

// The tile for `rows` pixels, searched downwards from the most that the registers hold.
template <typename T, int Rows, int Vectors>
void conv2d_direct_rows(const Conv2dDirectArgs<T>& a, int64_t pixel, int rows) {
  if (rows == Rows) {
    conv2d_direct_tile<T, Rows, Vectors>(a, pixel);
  } else if constexpr (Rows > 1) {
    conv2d_direct_rows<T, Rows - 1, Vectors>(a, pixel, rows);
  }
}

template <typename T, int Vectors>
void conv2d_direct_vectors(const Conv2dDirectArgs<T>& a) {
  if (a.vectors == Vectors) {
    // Tiles of nearly equal size: a last tile of one pixel would load as many weights as a full one.
    constexpr int kRows = rows_for(Vectors);
    const int64_t tiles = (a.pixels + kRows - 1) / kRows;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = a.pixels * t / tiles;
      conv2d_direct_rows<T, kRows, Vectors>(a, begin, static_cast<int>(a.pixels * (t + 1) / tiles - begin));
    }
  } else if constexpr (Vectors > 1) {
    conv2d_direct_vectors<T, Vectors - 1>(a);
  }
}

template <typename T>
void conv2d_direct(const Conv2dDirectArgs<T>& a) {
  conv2d_direct_vectors<T, kMaxVectors>(a);
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
