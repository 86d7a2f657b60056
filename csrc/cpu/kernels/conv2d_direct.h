// Direct convolution as a gather and a register-tiled product (Zhang et al., High Performance Zero-Memory Overhead
// Direct Convolutions, ICML 2018): a tile of pixels times registers of output channels stays in registers over the
// whole reduction. Included once per instruction set, after its vec_*.h.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

constexpr int64_t kLineBytes = 64;
// Tiles are few where each has to fetch this many bytes ahead for an element of its reduction, so that together they
// fetch as much as they multiply. A second-level cache gets some 8 bytes a cycle from the third level, and an element
// takes 8 to 12 cycles (Xeon with AMX, where fetching ahead takes 0.78 to 0.9 of the time of whole networks at batch
// 1).
constexpr int64_t kLeastAhead = 8;

// The segments [first, last) of a reduction, and what a tile fetches meanwhile: `ahead_step` bytes an element, of them
// two lines at most.
struct Conv2dChains {
  int64_t first, last;
  const char* ahead;  // null: nothing
  int64_t ahead_step;
};

// Adds chains, each of which but the reduction's last ends in a flush, up in `partial`, where those before have left
// their sums. The last one finishes the tile.
template <typename T, int Rows, int Vectors, bool Ahead>
void conv2d_direct_tile(const Conv2dDirectArgs<T>& a, int64_t pixel, const Conv2dChains& chains, Compute<T>* partial) {
  using V = Vec<T>;
  using Reg = typename V::Reg;
  constexpr int kWidth = V::kWidth;
  const bool finishes = chains.last == a.num_segments;

  // 1. Fetch the output's lines: stores that miss would stall the next tile.
  if (finishes) {
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        __builtin_prefetch(a.output + a.output_offsets[pixel + m] + v * kWidth, /*for writing=*/1);
  }

  // 2. Accumulate, in partial sums that the segments' flush marks end.
  Reg acc[Rows][Vectors];
  bool has_partial = chains.first > 0;
  const char* ahead = chains.ahead;
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[m][v] = V::zero();

  for (int64_t s = chains.first; s < chains.last; ++s) {
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
      if constexpr (Ahead) {
        __builtin_prefetch(ahead, /*for writing=*/0, /*second-level cache=*/2);
        __builtin_prefetch(ahead + kLineBytes, 0, 2);
        ahead += chains.ahead_step;
      }
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

  if (!finishes) return;

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

// Many tiles run through the whole reduction one after the other. Few tiles would wait for weights that come from
// beyond the second-level cache: they share each chain's while it lies there, and fetch the next one's.
template <typename T>
void conv2d_direct(const Conv2dDirectArgs<T>& a) {
  with_count<kMaxVectors>(a.vectors, [&]<int Vectors>() {
    constexpr int kRows = rows_for(Vectors), kTile = kRows * Vectors * Vec<T>::kWidth;
    constexpr int64_t kElement = Vectors * Vec<T>::kWidth, kBytes = kElement * sizeof(Compute<T>);
    constexpr int64_t kFewTiles = kBytes / kLeastAhead;
    Compute<T> partial[kFewTiles * kTile];
    const int64_t tiles = (a.pixels + kRows - 1) / kRows;
    if (tiles > kFewTiles) {
      over_tiles<kRows>(a.pixels, [&]<int Rows>(int64_t pixel) {
        conv2d_direct_tile<T, Rows, Vectors, false>(a, pixel, {0, a.num_segments, nullptr, 0}, partial);
      });
      return;
    }
    Conv2dChains chain{0, 0, nullptr, (kBytes + tiles - 1) / tiles};
    do {
      chain.first = chain.last;
      while (chain.last < a.num_segments && !a.segments[chain.last++].flush) {
      }
      const Compute<T>* next =
          chain.last < a.num_segments ? a.weight + a.segments[chain.last].weight * kElement : a.next_weight;
      chain.ahead = reinterpret_cast<const char*>(next);
      int64_t reduction = 0;
      for (int64_t s = chain.first; next != nullptr && s < chain.last; ++s) reduction += a.segments[s].length;
      over_tiles<kRows>(a.pixels, [&]<int Rows>(int64_t pixel) {
        Compute<T>* sums = partial + pixel * kElement;
        if (next == nullptr) {
          conv2d_direct_tile<T, Rows, Vectors, false>(a, pixel, chain, sums);
        } else {
          conv2d_direct_tile<T, Rows, Vectors, true>(a, pixel, chain, sums);
          chain.ahead += reduction * chain.ahead_step;
        }
      });
    } while (chain.last < a.num_segments);
  });
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
