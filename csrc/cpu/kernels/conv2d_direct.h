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

// A share is this many elements of a reduction, or fewer where a chain ends: few enough for its weights to stay near.
constexpr int64_t kShareElements = 128, kShareSegments = 16;

// A part of a tile's reduction: neighbouring segments, of which but the last one may flush.
struct Conv2dShare {
  const Conv2dSegment* segments;
  int64_t num_segments;
  bool resumes, has_sums;  // a chain that the share before began; sums of chains before that
  bool finishes;           // the reduction
  const char* ahead;       // fetched meanwhile, `ahead_step` bytes an element, of them two lines at most; null: nothing
  int64_t ahead_step;
};

// Adds a share up. What a chain has come to when its share ends is kept in `running`, sums of whole chains in `sums`;
// the last share finishes the tile.
template <typename T, int Rows, int Vectors, bool Ahead>
void conv2d_direct_tile(const Conv2dDirectArgs<T>& a, int64_t pixel, const Conv2dShare& share, Compute<T>* running,
                        Compute<T>* sums) {
  using V = Vec<T>;
  using Reg = typename V::Reg;
  constexpr int kWidth = V::kWidth;

  // 1. Fetch the output's lines: stores that miss would stall the next tile.
  if (share.finishes) {
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        __builtin_prefetch(a.output + a.output_offsets[pixel + m] + v * kWidth, /*for writing=*/1);
  }

  // 2. Accumulate, in partial sums that the segments' flush marks end.
  Reg acc[Rows][Vectors];
  bool has_sums = share.has_sums;
  const char* ahead = share.ahead;
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v)
      acc[m][v] = share.resumes ? V::load(running + (m * Vectors + v) * kWidth) : V::zero();

  for (int64_t s = 0; s < share.num_segments; ++s) {
    const Conv2dSegment segment = share.segments[s];
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
        ahead += share.ahead_step;
      }
    }
    if (segment.flush) {
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
          Compute<T>* p = sums + (m * Vectors + v) * kWidth;
          V::store(p, has_sums ? V::add(V::load(p), acc[m][v]) : acc[m][v]);
          acc[m][v] = V::zero();
        }
      has_sums = true;
    }
  }

  if (!share.finishes) {
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) V::store(running + (m * Vectors + v) * kWidth, acc[m][v]);
    return;
  }

  // 3. Epilogue: partial sums, bias, residual, rectifier, store.
  const int last = static_cast<int>(a.channels - (Vectors - 1) * kWidth);
  const Rectifier<T> rectify(a.activation);
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    const bool whole = v < Vectors - 1 || last == kWidth;
    Reg bias = V::zero();
    if (a.bias != nullptr) bias = whole ? V::load(a.bias + v * kWidth) : V::load_first(a.bias + v * kWidth, last);
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      Reg y = acc[m][v];
      if (has_sums) y = V::add(y, V::load(sums + (m * Vectors + v) * kWidth));
      y = V::add(y, bias);
      if (a.residual != nullptr) {
        const T* residual = a.residual + a.residual_offsets[pixel + m] + v * kWidth;
        y = V::add(y, whole ? V::load(residual) : V::load_first(residual, last));
      }
      y = rectify(y);
      T* out = a.output + a.output_offsets[pixel + m] + v * kWidth;
      if (whole) {
        V::store(out, y);
      } else {
        V::store_first(out, y, last);
      }
    }
  }
  if (!is_rectifier(a.activation)) finish_pixels<T>(a.activation, a.output, a.output_offsets + pixel, Rows, a.channels);
}

// Many tiles run through the whole reduction one after the other. Few tiles would wait for weights that come from
// beyond the second-level cache: they take turns at each share of it, and fetch the next share's meanwhile.
template <typename T>
void conv2d_direct(const Conv2dDirectArgs<T>& a) {
  with_count<kMaxVectors>(a.vectors, [&]<int Vectors>() {
    constexpr int kRows = rows_for(Vectors), kTile = kRows * Vectors * Vec<T>::kWidth;
    constexpr int64_t kElement = Vectors * Vec<T>::kWidth, kBytes = kElement * sizeof(Compute<T>);
    constexpr int64_t kFewTiles = kBytes / kLeastAhead;
    const int64_t tiles = (a.pixels + kRows - 1) / kRows;
    if (tiles > kFewTiles) {
      Compute<T> sums[kTile];
      const Conv2dShare whole{a.segments, a.num_segments, false, false, true, nullptr, 0};
      over_tiles<kRows>(a.pixels, [&]<int Rows>(int64_t pixel) {
        conv2d_direct_tile<T, Rows, Vectors, false>(a, pixel, whole, nullptr, sums);
      });
      return;
    }
    Compute<T> running[kFewTiles * kTile], sums[kFewTiles * kTile];
    Conv2dSegment segments[kShareSegments];
    Conv2dShare share{segments, 0, false, false, false, nullptr, (kBytes + tiles - 1) / tiles};
    int64_t s = 0, taken = 0;  // the next segment, and what of it was in shares before
    do {
      int64_t elements = 0;
      bool flushes = false;
      share.num_segments = 0;
      while (s < a.num_segments && elements < kShareElements && share.num_segments < kShareSegments && !flushes) {
        Conv2dSegment& part = segments[share.num_segments++] = a.segments[s];
        part.offset += taken, part.weight += taken, part.length -= static_cast<int32_t>(taken);
        if (const int64_t room = kShareElements - elements; part.length > room) {
          part.length = static_cast<int32_t>(room), part.flush = false;
          taken += room;
        } else {
          flushes = part.flush;
          ++s, taken = 0;
        }
        elements += part.length;
      }
      share.finishes = s == a.num_segments;
      const Compute<T>* next = share.finishes ? a.next_weight : a.weight + (a.segments[s].weight + taken) * kElement;
      share.ahead = reinterpret_cast<const char*>(next);
      over_tiles<kRows>(a.pixels, [&]<int Rows>(int64_t pixel) {
        Compute<T>*tile_running = running + pixel * kElement, *tile_sums = sums + pixel * kElement;
        if (next == nullptr) {
          conv2d_direct_tile<T, Rows, Vectors, false>(a, pixel, share, tile_running, tile_sums);
        } else {
          conv2d_direct_tile<T, Rows, Vectors, true>(a, pixel, share, tile_running, tile_sums);
          share.ahead += elements * share.ahead_step;
        }
      });
      share.resumes = !flushes, share.has_sums |= flushes;
    } while (!share.finishes);
  });
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
