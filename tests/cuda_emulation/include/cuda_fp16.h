// __half for g++: the conversions that the kernels use, in bits.
#pragma once
#include <cuda_runtime_api.h>

struct __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

__forceinline__ float __half2float(__half h) {
  const uint32_t sign = uint32_t{h.bits} >> 15 << 31, exponent = h.bits >> 10 & 31, mantissa = h.bits & 1023;
  if (exponent == 0) {  // zero and subnormal: units of 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return __uint_as_float(sign | wide << 23 | mantissa << 13);
}

// To the nearest, ties to even.
__forceinline__ __half __float2half_rn(float x) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 31 << 15, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {0x7fff};                                 // NaN
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // from 65520 on: infinity
  if (magnitude < 0x38800000) {  // subnormal: the float that 0.5 added rounds to units of 2^-24
    const float rounded = fabsf(x) + 0.5f;
    return {static_cast<uint16_t>(sign | (__float_as_uint(rounded) - 0x3f000000))};
  }
  const uint32_t odd = magnitude >> 13 & 1;
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13))};
}
__forceinline__ __half __float2half(float x) { return __float2half_rn(x); }
__forceinline__ float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
__forceinline__ __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
