// Element types of tensors, and the type that kernels compute in. bfloat16 and float16 are widened where a kernel reads
// them, computed with in float32, and rounded once, to nearest even, where it writes them.
#pragma once
#include <cstdint>

namespace fastcnn::cpu {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename E>
struct ComputeType {
  using type = E;
};
template <>
struct ComputeType<BFloat16> {
  using type = float;
};
template <>
struct ComputeType<Float16> {
  using type = float;
};
template <typename E>
using Compute = typename ComputeType<E>::type;

namespace {

// Internal linkage: a copy compiled for a newer CPU must not serve an older one.
inline float from_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}
inline uint32_t to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(Float16 x) {
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  float wide = from_bits(magnitude) * 0x1p112f;  // the exponent's other bias; exact for subnormal numbers, too
  if (wide >= 65536) wide = from_bits(magnitude | 0x7f800000u);
  return from_bits(to_bits(wide) | static_cast<uint32_t>(x.bits & 0x8000) << 16);
}

template <typename E>
E narrow(float x);
template <>
inline BFloat16 narrow<BFloat16>(float x) {
  const uint32_t bits = to_bits(x);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Float16 narrow<Float16>(float x) {
  const uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000;
  uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (magnitude >= 0x47800000) return {static_cast<uint16_t>(sign | 0x7c00)};
  // Below 2^-14 an addition rounds to multiples of 2^-24 and leaves their number in the lowest bits.
  if (magnitude < 0x38800000)
    return {static_cast<uint16_t>(sign | (to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f)))};
  magnitude += 0xc8000fff + (magnitude >> 13 & 1);  // the exponent's other bias, and half of the last place
  return {static_cast<uint16_t>(sign | magnitude >> 13)};
}

}  // namespace
}  // namespace fastcnn::cpu
