// Whole-register operations for AVX-512 (F, BW, DQ, VL). One struct an element type; every kernel is written against
// this interface, which vec_avx2.h and vec_baseline.h repeat for their registers. With AVX-512 BF16 on, bfloat16 takes
// part in products as it is, in pairs.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "element.h"

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// Register budget of the tiles: 32 registers, of which at most 30 are in use (see conv2d_direct.h).
constexpr int kMaxVectors = 4;
constexpr int rows_for(int vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 8 : 10; }

template <typename T>
struct Vec;

template <>
struct Vec<float> {
  using Reg = __m512;
  using Mask = __mmask16;
  static constexpr int kWidth = 16;
  static constexpr bool kPermutes = true;

  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg broadcast(float x) { return _mm512_set1_ps(x); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static Reg load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, Reg a) { _mm512_storeu_ps(p, a); }
  static void stream(float* p, Reg a) { _mm512_stream_ps(p, a); }  // around the caches; aligned
  static void finish_streams() { _mm_sfence(); }                   // before another thread may read them
  static void store_first(float* p, Reg a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static Reg fmadd(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  // Within bounds; NaN stays NaN, as with relu.
  static Reg clamp(Reg a, Reg least, Reg most) { return _mm512_max_ps(least, _mm512_min_ps(most, a)); }
  // 2 to the power of the integers that `rounded` has in its lowest bits: numbers to which 1.5 * 2^23 was added.
  static Reg power_of_2(Reg rounded) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(rounded), _mm512_set1_epi32(127)), 23));
  }
  // 1 / a, where both are normal, within a unit in the last place: Newton's step from 14 bits. A division takes 16
  // cycles (Xeon with AMX).
  static Reg inverse(Reg a) {
    const Reg guess = _mm512_rcp14_ps(a);
    return _mm512_fmadd_ps(guess, _mm512_fnmadd_ps(a, guess, _mm512_set1_ps(1)), guess);
  }
  // Of all lanes: the halves are added until one is left.
  static float sum(Reg a) { return _mm512_reduce_add_ps(a); }
  // c plus the products of all elements that the lanes of operands hold: one each, or a pair.
  static Reg dot(Reg a, Reg b, Reg c) { return fmadd(a, b, c); }
  // max(x, 0) that keeps NaN: the instruction returns its second operand where either one is NaN.
  static Reg relu(Reg a) { return _mm512_max_ps(_mm512_setzero_ps(), a); }
  static Mask greater(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static Mask greater_or_nan(Reg a, Reg b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) | _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  }
  static Mask equal(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static Reg select(Mask m, Reg if_true, Reg if_false) { return _mm512_mask_blend_ps(m, if_false, if_true); }
  static uint32_t bits(Mask m) { return m; }
  static Mask from_bits(uint32_t b) { return static_cast<Mask>(b); }
  // Small non-negative integers held in lanes as numbers of T: exact below 2^24.
  static void store_u8(uint8_t* p, Reg a, int n) {
    _mm512_mask_cvtepi32_storeu_epi8(p, first(n), _mm512_cvttps_epi32(a));
  }
  static void store_i32(int32_t* p, Reg a, int n) { _mm512_mask_storeu_epi32(p, first(n), _mm512_cvttps_epi32(a)); }
  static Reg load_u8(const uint8_t* p, int n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
  }
  static Reg load_i32(const int32_t* p, int n) { return _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(first(n), p)); }
  // Lanes of the given numbers: those of a, and from kWidth on those of b. Elsewhere that is no single instruction.
  static Reg permute(Reg a, Reg b, const int32_t* lanes) {
    return _mm512_permutex2var_ps(a, _mm512_loadu_si512(lanes), b);
  }
  // Registers as the rows of a square matrix become its columns.
  static void transpose(Reg (&r)[kWidth]) {
    Reg t[kWidth];
#pragma GCC unroll 8
    for (int i = 0; i < kWidth; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    // Now pairs of rows; then columns 4 L + k of four rows in the quarter L of u[k], u[4 + k], u[8 + k], u[12 + k].
    __m512d u[kWidth];
#pragma GCC unroll 4
    for (int i = 0; i < kWidth; i += 4)
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        u[i + 2 * k] = _mm512_unpacklo_pd(_mm512_castps_pd(t[i + k]), _mm512_castps_pd(t[i + 2 + k]));
        u[i + 2 * k + 1] = _mm512_unpackhi_pd(_mm512_castps_pd(t[i + k]), _mm512_castps_pd(t[i + 2 + k]));
      }
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Reg u0 = _mm512_castpd_ps(u[k]), u1 = _mm512_castpd_ps(u[4 + k]);
      const Reg u2 = _mm512_castpd_ps(u[8 + k]), u3 = _mm512_castpd_ps(u[12 + k]);
      const Reg even01 = _mm512_shuffle_f32x4(u0, u1, 0x88), odd01 = _mm512_shuffle_f32x4(u0, u1, 0xdd);
      const Reg even23 = _mm512_shuffle_f32x4(u2, u3, 0x88), odd23 = _mm512_shuffle_f32x4(u2, u3, 0xdd);
      r[k] = _mm512_shuffle_f32x4(even01, even23, 0x88);
      r[4 + k] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
      r[8 + k] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
      r[12 + k] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
    }
  }
};

template <>
struct Vec<double> {
  using Reg = __m512d;
  using Mask = __mmask8;
  static constexpr int kWidth = 8;
  static constexpr bool kPermutes = true;

  static __mmask8 first(int n) { return static_cast<__mmask8>((1u << n) - 1u); }
  static Reg zero() { return _mm512_setzero_pd(); }
  static Reg broadcast(double x) { return _mm512_set1_pd(x); }
  static Reg load(const double* p) { return _mm512_loadu_pd(p); }
  static Reg load_first(const double* p, int n) { return _mm512_maskz_loadu_pd(first(n), p); }
  static void store(double* p, Reg a) { _mm512_storeu_pd(p, a); }
  static void stream(double* p, Reg a) { _mm512_stream_pd(p, a); }  // around the caches; aligned
  static void finish_streams() { _mm_sfence(); }                    // before another thread may read them
  static void store_first(double* p, Reg a, int n) { _mm512_mask_storeu_pd(p, first(n), a); }
  static Reg add(Reg a, Reg b) { return _mm512_add_pd(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_pd(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_pd(a, b); }
  static Reg div(Reg a, Reg b) { return _mm512_div_pd(a, b); }
  static Reg fmadd(Reg a, Reg b, Reg c) { return _mm512_fmadd_pd(a, b, c); }
  static Reg clamp(Reg a, Reg least, Reg most) { return _mm512_max_pd(least, _mm512_min_pd(most, a)); }
  static Reg power_of_2(Reg rounded) {
    return _mm512_castsi512_pd(
        _mm512_slli_epi64(_mm512_add_epi64(_mm512_castpd_si512(rounded), _mm512_set1_epi64(1023)), 52));
  }
  static Reg inverse(Reg a) { return _mm512_div_pd(_mm512_set1_pd(1), a); }
  static double sum(Reg a) { return _mm512_reduce_add_pd(a); }
  static Reg dot(Reg a, Reg b, Reg c) { return fmadd(a, b, c); }
  static Reg relu(Reg a) { return _mm512_max_pd(_mm512_setzero_pd(), a); }
  static Mask greater(Reg a, Reg b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
  static Mask greater_or_nan(Reg a, Reg b) {
    return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ) | _mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q);
  }
  static Mask equal(Reg a, Reg b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
  static Reg select(Mask m, Reg if_true, Reg if_false) { return _mm512_mask_blend_pd(m, if_false, if_true); }
  static uint32_t bits(Mask m) { return m; }
  static Mask from_bits(uint32_t b) { return static_cast<Mask>(b); }
  static void store_u8(uint8_t* p, Reg a, int n) {
    _mm256_mask_cvtepi32_storeu_epi8(p, first(n), _mm512_cvttpd_epi32(a));
  }
  static void store_i32(int32_t* p, Reg a, int n) { _mm256_mask_storeu_epi32(p, first(n), _mm512_cvttpd_epi32(a)); }
  static Reg load_u8(const uint8_t* p, int n) {
    return _mm512_cvtepi32_pd(_mm256_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
  }
  static Reg load_i32(const int32_t* p, int n) { return _mm512_cvtepi32_pd(_mm256_maskz_loadu_epi32(first(n), p)); }
  static Reg permute(Reg a, Reg b, const int32_t* lanes) {
    const __m256i numbers = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
    return _mm512_permutex2var_pd(a, _mm512_cvtepi32_epi64(numbers), b);
  }
  static void transpose(Reg (&r)[kWidth]) {
    Reg t[kWidth];
#pragma GCC unroll 4
    for (int i = 0; i < kWidth; i += 2) {
      t[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const Reg even01 = _mm512_shuffle_f64x2(t[k], t[2 + k], 0x88), odd01 = _mm512_shuffle_f64x2(t[k], t[2 + k], 0xdd);
      const Reg even23 = _mm512_shuffle_f64x2(t[4 + k], t[6 + k], 0x88);
      const Reg odd23 = _mm512_shuffle_f64x2(t[4 + k], t[6 + k], 0xdd);
      r[k] = _mm512_shuffle_f64x2(even01, even23, 0x88);
      r[2 + k] = _mm512_shuffle_f64x2(odd01, odd23, 0x88);
      r[4 + k] = _mm512_shuffle_f64x2(even01, even23, 0xdd);
      r[6 + k] = _mm512_shuffle_f64x2(odd01, odd23, 0xdd);
    }
  }
};

// Lanes of float32 that memory holds as half as wide a type: loads widen, stores round to nearest even.
template <typename E>
struct VecHalf : Vec<float> {
  using Vec<float>::load;
  using Vec<float>::load_first;
  using Vec<float>::store;
  using Vec<float>::store_first;

  static Reg load(const E* p) { return Vec<E>::widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static Reg load_first(const E* p, int n) { return Vec<E>::widen(_mm256_maskz_loadu_epi16(first(n), p)); }
  static void store(E* p, Reg a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), Vec<E>::narrow(a)); }
  static void stream(E* p, Reg a) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), Vec<E>::narrow(a)); }
  static void store_first(E* p, Reg a, int n) { _mm256_mask_storeu_epi16(p, first(n), Vec<E>::narrow(a)); }
};

template <>
struct Vec<BFloat16> : VecHalf<BFloat16> {
  static Reg widen(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
  static __m256i narrow(Reg a) {
    const __m512i bits = _mm512_castps_si512(a), high = _mm512_srli_epi32(bits, 16);
    const __m512i half = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
  }
#ifdef __AVX512BF16__
  static Reg dot(Reg a, Reg b, Reg c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
#endif
};

template <>
struct Vec<Float16> : VecHalf<Float16> {
  static Reg widen(__m256i h) { return _mm512_cvtph_ps(h); }
  static __m256i narrow(Reg a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
};

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
