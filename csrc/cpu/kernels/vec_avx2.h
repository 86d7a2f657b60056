// Whole-register operations for AVX2 with FMA: the interface of vec_avx512.h for 16 registers of 32 bytes.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "element.h"

namespace fastcnn::cpu::avx2 {
namespace {

// Register budget of the tiles: 16 registers; 6 x 2 takes 12 accumulators, 2 weights and 1 broadcast.
constexpr int kMaxVectors = 2;
constexpr int rows_for(int vectors) { return vectors == 2 ? 6 : 8; }

// kLaneMasks + 8 - n starts a mask whose first n lanes are set.
alignas(32) constexpr int32_t kLaneMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
alignas(32) constexpr int64_t kLaneMasks64[8] = {-1, -1, -1, -1, 0, 0, 0, 0};

template <typename T>
struct Vec;

template <>
struct Vec<float> {
  using Reg = __m256;
  using Mask = __m256;
  static constexpr int kWidth = 8;
  static constexpr bool kPermutes = false;

  static __m256i first(int n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneMasks + 8 - n)); }
  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg broadcast(float x) { return _mm256_set1_ps(x); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static Reg load_first(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static void store(float* p, Reg a) { _mm256_storeu_ps(p, a); }
  static void stream(float* p, Reg a) { _mm256_stream_ps(p, a); }  // around the caches; aligned
  static void finish_streams() { _mm_sfence(); }                   // before another thread may read them
  // Masked stores take tens of cycles on some CPUs (Zen).
  static void store_first(float* p, Reg a, int n) {
    if (n == kWidth) return store(p, a);
    _mm256_maskstore_ps(p, first(n), a);
  }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static Reg fmadd(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg clamp(Reg a, Reg least, Reg most) { return _mm256_max_ps(least, _mm256_min_ps(most, a)); }
  static Reg power_of_2(Reg rounded) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(rounded), _mm256_set1_epi32(127)), 23));
  }
  static Reg inverse(Reg a) { return _mm256_div_ps(_mm256_set1_ps(1), a); }
  static float sum(Reg a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static Reg dot(Reg a, Reg b, Reg c) { return fmadd(a, b, c); }
  static Reg relu(Reg a) { return _mm256_max_ps(_mm256_setzero_ps(), a); }
  static Mask greater(Reg a, Reg b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  static Mask greater_or_nan(Reg a, Reg b) {
    return _mm256_or_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  }
  static Mask equal(Reg a, Reg b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static Reg select(Mask m, Reg if_true, Reg if_false) { return _mm256_blendv_ps(if_false, if_true, m); }
  static uint32_t bits(Mask m) { return static_cast<uint32_t>(_mm256_movemask_ps(m)); }
  static Mask from_bits(uint32_t b) {
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(b)), lanes);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lanes));
  }
  static void store_u8(uint8_t* p, Reg a, int n) {
    if (n == kWidth) {
      const __m256i i = _mm256_cvttps_epi32(a);
      const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
      return _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
    }
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_cvttps_epi32(a));
    for (int i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(lanes[i]);
  }
  static void store_i32(int32_t* p, Reg a, int n) { _mm256_maskstore_epi32(p, first(n), _mm256_cvttps_epi32(a)); }
  static Reg load_u8(const uint8_t* p, int n) {
    if (n == kWidth)
      return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    alignas(32) int32_t lanes[8] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return _mm256_cvtepi32_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(lanes)));
  }
  static Reg load_i32(const int32_t* p, int n) { return _mm256_cvtepi32_ps(_mm256_maskload_epi32(p, first(n))); }
  // Registers as the rows of a square matrix become its columns.
  static void transpose(Reg (&r)[kWidth]) {
    Reg t[kWidth];
#pragma GCC unroll 4
    for (int i = 0; i < kWidth; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    __m256d u[kWidth];
#pragma GCC unroll 2
    for (int i = 0; i < kWidth; i += 4)
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        u[i + 2 * k] = _mm256_unpacklo_pd(_mm256_castps_pd(t[i + k]), _mm256_castps_pd(t[i + 2 + k]));
        u[i + 2 * k + 1] = _mm256_unpackhi_pd(_mm256_castps_pd(t[i + k]), _mm256_castps_pd(t[i + 2 + k]));
      }
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      r[k] = _mm256_castpd_ps(_mm256_permute2f128_pd(u[k], u[4 + k], 0x20));
      r[4 + k] = _mm256_castpd_ps(_mm256_permute2f128_pd(u[k], u[4 + k], 0x31));
    }
  }
};

template <>
struct Vec<double> {
  using Reg = __m256d;
  using Mask = __m256d;
  static constexpr int kWidth = 4;
  static constexpr bool kPermutes = false;

  static __m256i first(int n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneMasks64 + 4 - n)); }
  static __m128i first32(int n) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(kLaneMasks + 8 - n)); }
  static Reg zero() { return _mm256_setzero_pd(); }
  static Reg broadcast(double x) { return _mm256_set1_pd(x); }
  static Reg load(const double* p) { return _mm256_loadu_pd(p); }
  static Reg load_first(const double* p, int n) { return _mm256_maskload_pd(p, first(n)); }
  static void store(double* p, Reg a) { _mm256_storeu_pd(p, a); }
  static void stream(double* p, Reg a) { _mm256_stream_pd(p, a); }  // around the caches; aligned
  static void finish_streams() { _mm_sfence(); }                    // before another thread may read them
  static void store_first(double* p, Reg a, int n) {
    if (n == kWidth) return store(p, a);
    _mm256_maskstore_pd(p, first(n), a);
  }
  static Reg add(Reg a, Reg b) { return _mm256_add_pd(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_pd(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_pd(a, b); }
  static Reg div(Reg a, Reg b) { return _mm256_div_pd(a, b); }
  static Reg fmadd(Reg a, Reg b, Reg c) { return _mm256_fmadd_pd(a, b, c); }
  static Reg clamp(Reg a, Reg least, Reg most) { return _mm256_max_pd(least, _mm256_min_pd(most, a)); }
  static Reg power_of_2(Reg rounded) {
    return _mm256_castsi256_pd(
        _mm256_slli_epi64(_mm256_add_epi64(_mm256_castpd_si256(rounded), _mm256_set1_epi64x(1023)), 52));
  }
  static Reg inverse(Reg a) { return _mm256_div_pd(_mm256_set1_pd(1), a); }
  static double sum(Reg a) {
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
  static Reg dot(Reg a, Reg b, Reg c) { return fmadd(a, b, c); }
  static Reg relu(Reg a) { return _mm256_max_pd(_mm256_setzero_pd(), a); }
  static Mask greater(Reg a, Reg b) { return _mm256_cmp_pd(a, b, _CMP_GT_OQ); }
  static Mask greater_or_nan(Reg a, Reg b) {
    return _mm256_or_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ), _mm256_cmp_pd(a, a, _CMP_UNORD_Q));
  }
  static Mask equal(Reg a, Reg b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
  static Reg select(Mask m, Reg if_true, Reg if_false) { return _mm256_blendv_pd(if_false, if_true, m); }
  static uint32_t bits(Mask m) { return static_cast<uint32_t>(_mm256_movemask_pd(m)); }
  static Mask from_bits(uint32_t b) {
    const __m256i lanes = _mm256_setr_epi64x(1, 2, 4, 8);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi64x(static_cast<long long>(b)), lanes);
    return _mm256_castsi256_pd(_mm256_cmpeq_epi64(set, lanes));
  }
  static void store_u8(uint8_t* p, Reg a, int n) {
    if (n == kWidth) {
      const __m128i words = _mm_packus_epi32(_mm256_cvttpd_epi32(a), _mm_setzero_si128());
      const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
      __builtin_memcpy(p, &bytes, sizeof(bytes));
      return;
    }
    alignas(16) int32_t lanes[4];
    _mm_store_si128(reinterpret_cast<__m128i*>(lanes), _mm256_cvttpd_epi32(a));
    for (int i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(lanes[i]);
  }
  static void store_i32(int32_t* p, Reg a, int n) { _mm_maskstore_epi32(p, first32(n), _mm256_cvttpd_epi32(a)); }
  static Reg load_u8(const uint8_t* p, int n) {
    if (n == kWidth) {
      int bytes;
      __builtin_memcpy(&bytes, p, sizeof(bytes));
      return _mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes)));
    }
    alignas(16) int32_t lanes[4] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return _mm256_cvtepi32_pd(_mm_load_si128(reinterpret_cast<const __m128i*>(lanes)));
  }
  static Reg load_i32(const int32_t* p, int n) { return _mm256_cvtepi32_pd(_mm_maskload_epi32(p, first32(n))); }
  static void transpose(Reg (&r)[kWidth]) {
    const Reg low01 = _mm256_unpacklo_pd(r[0], r[1]), high01 = _mm256_unpackhi_pd(r[0], r[1]);
    const Reg low23 = _mm256_unpacklo_pd(r[2], r[3]), high23 = _mm256_unpackhi_pd(r[2], r[3]);
    r[0] = _mm256_permute2f128_pd(low01, low23, 0x20);
    r[1] = _mm256_permute2f128_pd(high01, high23, 0x20);
    r[2] = _mm256_permute2f128_pd(low01, low23, 0x31);
    r[3] = _mm256_permute2f128_pd(high01, high23, 0x31);
  }
};

// Lanes of float32 that memory holds as half as wide a type: loads widen, stores round to nearest even. There are no
// masked loads and stores of 16 bits.
template <typename E>
struct VecHalf : Vec<float> {
  using Vec<float>::load;
  using Vec<float>::load_first;
  using Vec<float>::store;
  using Vec<float>::store_first;

  static Reg load(const E* p) { return Vec<E>::widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static Reg load_first(const E* p, int n) {
    if (n == kWidth) return load(p);
    alignas(16) E lanes[kWidth] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  static void store(E* p, Reg a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), Vec<E>::narrow(a)); }
  static void stream(E* p, Reg a) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), Vec<E>::narrow(a)); }
  static void store_first(E* p, Reg a, int n) {
    if (n == kWidth) return store(p, a);
    alignas(16) E lanes[kWidth];
    store(lanes, a);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
};

template <>
struct Vec<BFloat16> : VecHalf<BFloat16> {
  static Reg widen(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
  static __m128i narrow(Reg a) {
    const __m256i bits = _mm256_castps_si256(a), high = _mm256_srli_epi32(bits, 16);
    const __m256i half = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i words = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  }
};

template <>
struct Vec<Float16> : VecHalf<Float16> {
  static Reg widen(__m128i h) { return _mm256_cvtph_ps(h); }
  static __m128i narrow(Reg a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
};

}  // namespace
}  // namespace fastcnn::cpu::avx2
