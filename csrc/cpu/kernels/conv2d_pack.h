// Weights and rows of pixels on their way into the order, and the type, that the convolution kernels read. Included
// once per instruction set, after its vec_*.h.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// How far ahead weights are fetched, in elements of a row or in rows: large layers' rows lie in as many pages, where
// the hardware fetches nothing ahead.
constexpr int64_t kPackAhead = 64, kPackRowsAhead = 8;

// Rows of weights, neighbours along the depth, become columns: one register's square after the other.
template <typename T>
void conv2d_pack_transposed(const Conv2dPackArgs<T>& a, const T* tap, Compute<T>* packed) {
  using V = Vec<T>;
  constexpr int kWidth = V::kWidth;
  const int64_t whole_lanes = a.lanes / kWidth * kWidth, whole_depth = a.depth / kWidth * kWidth;
  for (int64_t lane = 0; lane < whole_lanes; lane += kWidth)
    for (int64_t d = 0; d < whole_depth; d += kWidth) {
      typename V::Reg square[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        const T* row = tap + (lane + i) * a.lane_stride + d;
        __builtin_prefetch(row + kPackAhead);
        square[i] = V::load(row);
      }
      V::transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) V::store(packed + (d + i) * a.padded_lanes + lane, square[i]);
    }
  for (int64_t lane = 0; lane < a.lanes; ++lane)
    for (int64_t d = lane < whole_lanes ? whole_depth : 0; d < a.depth; ++d)
      packed[d * a.padded_lanes + lane] = widen(tap[lane * a.lane_stride + d]);
}

// Rows of weights that are rows of lanes already.
template <typename T>
void conv2d_pack_rows(const Conv2dPackArgs<T>& a, const T* tap, Compute<T>* packed) {
  using V = Vec<T>;
  for (int64_t d = 0; d < a.depth; ++d)
    for (int64_t lane = 0; lane < a.lanes; lane += V::kWidth) {
      const int n = static_cast<int>(a.lanes - lane < V::kWidth ? a.lanes - lane : V::kWidth);
      __builtin_prefetch(tap + (d + kPackRowsAhead) * a.depth_stride + lane);
      V::store(packed + d * a.padded_lanes + lane, V::load_first(tap + d * a.depth_stride + lane, n));
    }
}

template <typename T>
void conv2d_pack_any(const Conv2dPackArgs<T>& a, const T* tap, Compute<T>* packed) {
  constexpr int64_t kDepthBlock = 16;  // elements of one cache line of float: each line of weights is read once
  for (int64_t d0 = 0; d0 < a.depth; d0 += kDepthBlock) {
    const int64_t d1 = d0 + kDepthBlock < a.depth ? d0 + kDepthBlock : a.depth;
    for (int64_t lane = 0; lane < a.lanes; ++lane)
      for (int64_t d = d0; d < d1; ++d)
        packed[d * a.padded_lanes + lane] = widen(tap[lane * a.lane_stride + d * a.depth_stride]);
  }
}

#ifdef __AVX512BF16__
// Pairs of neighbours along the depth: the first one in the lower half.
void conv2d_pack_pairs(const Conv2dPackArgs<BFloat16>& a) {
  const int64_t pairs = (a.depth + 1) / 2;
  Conv2dPackArgs<float> halved{nullptr, a.lane_stride / 2, 1,       pairs, nullptr, 1,
                               a.lanes, a.padded_lanes,    nullptr, false};
  const bool whole = a.depth_stride == 1 && a.depth % 2 == 0 && a.lane_stride % 2 == 0;
  uint32_t* packed = reinterpret_cast<uint32_t*>(a.packed);
  for (int64_t t = 0; t < a.num_taps; ++t, packed += pairs * a.padded_lanes) {
    const BFloat16* tap = a.weight + a.tap_offsets[t];
    if (whole) {
      conv2d_pack_transposed(halved, reinterpret_cast<const float*>(tap), reinterpret_cast<float*>(packed));
    } else {
      for (int64_t p = 0; p < pairs; ++p) {
        const BFloat16* low = tap + 2 * p * a.depth_stride;
        const BFloat16* high = low + a.depth_stride;
        uint32_t* out = packed + p * a.padded_lanes;
        if (2 * p + 1 == a.depth) {
          for (int64_t lane = 0; lane < a.lanes; ++lane) out[lane] = low[lane * a.lane_stride].bits;
        } else if (a.lane_stride == 1) {
          for (int64_t lane = 0; lane < a.lanes; ++lane)
            out[lane] = low[lane].bits | static_cast<uint32_t>(high[lane].bits) << 16;
        } else {
          for (int64_t lane = 0; lane < a.lanes; ++lane)
            out[lane] = low[lane * a.lane_stride].bits | static_cast<uint32_t>(high[lane * a.lane_stride].bits) << 16;
        }
      }
    }
    for (int64_t p = 0; p < pairs; ++p)
      for (int64_t lane = a.lanes; lane < a.padded_lanes; ++lane) packed[p * a.padded_lanes + lane] = 0;
  }
}
#endif

template <typename T>
void conv2d_pack(const Conv2dPackArgs<T>& a) {
#ifdef __AVX512BF16__
  if (a.pairs) return conv2d_pack_pairs(a);
#endif
  Compute<T>* packed = a.packed;
  for (int64_t t = 0; t < a.num_taps; ++t, packed += a.depth * a.padded_lanes) {
    const T* tap = a.weight + a.tap_offsets[t];
    if (a.lane_stride == 1) {
      conv2d_pack_rows(a, tap, packed);
    } else if (a.depth_stride == 1) {
      conv2d_pack_transposed(a, tap, packed);
    } else {
      conv2d_pack_any(a, tap, packed);
    }
    if (a.lanes < a.padded_lanes)
      for (int64_t d = 0; d < a.depth; ++d)
        for (int64_t lane = a.lanes; lane < a.padded_lanes; ++lane) packed[d * a.padded_lanes + lane] = 0;
  }
}

#ifdef __AVX512BF16__
void conv2d_widen_pairs(const Conv2dWidenArgs<BFloat16>& a) {
  constexpr int kWidth = Vec<float>::kWidth;
  const auto load = [](const BFloat16* p, int n) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(Vec<float>::first(n), p));
  };
  for (int64_t row = 0; row < a.rows; ++row)
    for (int64_t i = 0; i < a.padded; i += kWidth) {
      const int64_t at = row * a.source_stride + i, left = a.length - i, room = a.padded - i;
      const int valid = static_cast<int>(left < 0 ? 0 : left < kWidth ? left : kWidth);
      __m512i pairs = load(a.source + at, valid);
      if (a.second != nullptr) pairs = _mm512_or_si512(pairs, _mm512_slli_epi32(load(a.second + at, valid), 16));
      _mm512_mask_storeu_epi32(a.target + row * a.target_stride + i,
                               Vec<float>::first(static_cast<int>(room < kWidth ? room : kWidth)), pairs);
    }
}
#endif

template <typename T>
void conv2d_widen(const Conv2dWidenArgs<T>& a) {
#ifdef __AVX512BF16__
  if (a.pairs) return conv2d_widen_pairs(a);
#endif
  using V = Vec<T>;
  for (int64_t row = 0; row < a.rows; ++row) {
    const T* source = a.source + row * a.source_stride;
    Compute<T>* target = a.target + row * a.target_stride;
    int64_t i = 0;
    for (; i + V::kWidth <= a.length; i += V::kWidth) V::store(target + i, V::load(source + i));
    if (i < a.padded) {
      const int valid = static_cast<int>(a.length - i);
      const int64_t rest = a.padded - i;
      V::store_first(target + i, V::load_first(source + i, valid),
                     static_cast<int>(rest < V::kWidth ? rest : V::kWidth));
      for (i += V::kWidth; i < a.padded; ++i) target[i] = 0;
    }
  }
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
