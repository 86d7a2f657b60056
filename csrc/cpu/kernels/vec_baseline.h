// Whole-register operations for any architecture: the interface of vec_avx512.h over 16-byte vectors of the compiler,
// which become SSE2 on x86-64 and NEON on aarch64.
#pragma once
#include <cstdint>

#include "element.h"

namespace fastcnn::cpu::baseline {
namespace {

#if defined(__aarch64__)
constexpr int kMaxVectors = 4;  // 32 registers
constexpr int rows_for(int vectors) { return vectors == 4 ? 6 : 8; }
#else
constexpr int kMaxVectors = 2;  // 16 registers, and a multiply needs one of its own
constexpr int rows_for(int) { return 5; }
#endif

template <typename T, typename Int, int Width>
struct VecBase {
  typedef T Reg __attribute__((vector_size(16)));
  typedef Int Mask __attribute__((vector_size(16)));
  static constexpr int kWidth = Width;
  static constexpr bool kPermutes = false;

  static Reg zero() { return Reg{}; }
  static Reg broadcast(T x) { return Reg{} + x; }
  static Reg load(const T* p) {
    Reg a;
    __builtin_memcpy(&a, p, sizeof(a));
    return a;
  }
  static Reg load_first(const T* p, int n) {
    Reg a{};
    for (int i = 0; i < n; ++i) a[i] = p[i];
    return a;
  }
  static void store(T* p, Reg a) { __builtin_memcpy(p, &a, sizeof(a)); }
  static void stream(T* p, Reg a) { store(p, a); }
  static void finish_streams() {}
  static void store_first(T* p, Reg a, int n) {
    for (int i = 0; i < n; ++i) p[i] = a[i];
  }
  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg sub(Reg a, Reg b) { return a - b; }
  static Reg mul(Reg a, Reg b) { return a * b; }
  static Reg div(Reg a, Reg b) { return a / b; }
  static Reg fmadd(Reg a, Reg b, Reg c) { return a * b + c; }
  static Reg clamp(Reg a, Reg least, Reg most) {
    a = select(a > most, most, a);
    return select(a < least, least, a);
  }
  static Reg power_of_2(Reg rounded) {
    constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52, kBias = sizeof(T) == 4 ? 127 : 1023;
    return (Reg)(((Mask)rounded + kBias) << kMantissa);
  }
  static Reg inverse(Reg a) { return 1 / a; }
  static T sum(Reg a) {
    for (int half = kWidth / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) a[i] += a[i + half];
    return a[0];
  }
  static Reg dot(Reg a, Reg b, Reg c) { return fmadd(a, b, c); }
  static Reg relu(Reg a) { return select(zero() > a, zero(), a); }
  static Mask greater(Reg a, Reg b) { return a > b; }
  static Mask greater_or_nan(Reg a, Reg b) { return (a > b) | (a != a); }
  static Mask equal(Reg a, Reg b) { return a == b; }
  static Reg select(Mask m, Reg if_true, Reg if_false) { return (Reg)((m & (Mask)if_true) | (~m & (Mask)if_false)); }
  static uint32_t bits(Mask m) {
    uint32_t b = 0;
    for (int i = 0; i < kWidth; ++i) b |= static_cast<uint32_t>(m[i] & 1) << i;
    return b;
  }
  static Mask from_bits(uint32_t b) {
    Mask m{};
    for (int i = 0; i < kWidth; ++i) m[i] = (b >> i) & 1u ? -1 : 0;
    return m;
  }
  static void store_u8(uint8_t* p, Reg a, int n) {
    for (int i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(a[i]);
  }
  static void store_i32(int32_t* p, Reg a, int n) {
    for (int i = 0; i < n; ++i) p[i] = static_cast<int32_t>(a[i]);
  }
  static Reg load_u8(const uint8_t* p, int n) {
    Reg a{};
    for (int i = 0; i < n; ++i) a[i] = static_cast<T>(p[i]);
    return a;
  }
  static Reg load_i32(const int32_t* p, int n) {
    Reg a{};
    for (int i = 0; i < n; ++i) a[i] = static_cast<T>(p[i]);
    return a;
  }
  // Registers as the rows of a square matrix become its columns.
  static void transpose(Reg (&r)[kWidth]) {
    for (int i = 0; i < kWidth; ++i)
      for (int j = 0; j < i; ++j) {
        const T swapped = r[i][j];
        r[i][j] = r[j][i];
        r[j][i] = swapped;
      }
  }
};

template <typename T>
struct Vec;
template <>
struct Vec<float> : VecBase<float, int32_t, 4> {};
template <>
struct Vec<double> : VecBase<double, int64_t, 2> {};

// Lanes of float32 that memory holds as half as wide a type: loads widen, stores round to nearest even.
template <typename E>
struct VecHalf : Vec<float> {
  using Vec<float>::load;
  using Vec<float>::load_first;
  using Vec<float>::store;
  using Vec<float>::store_first;

  static Reg load(const E* p) { return load_first(p, kWidth); }
  static Reg load_first(const E* p, int n) {
    Reg a{};
    for (int i = 0; i < n; ++i) a[i] = widen(p[i]);
    return a;
  }
  static void store(E* p, Reg a) { store_first(p, a, kWidth); }
  static void stream(E* p, Reg a) { store(p, a); }
  static void store_first(E* p, Reg a, int n) {
    for (int i = 0; i < n; ++i) p[i] = narrow<E>(a[i]);
  }
};
template <>
struct Vec<BFloat16> : VecHalf<BFloat16> {};
template <>
struct Vec<Float16> : VecHalf<Float16> {};

}  // namespace
}  // namespace fastcnn::cpu::baseline
