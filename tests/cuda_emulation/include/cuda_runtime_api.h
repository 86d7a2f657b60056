// As much of CUDA as kernels and their launchers use, for g++: qualifiers, vector types, built-in variables, barriers,
// warp collectives and device functions. What runs them is emulation.h; half types and wmma have headers of their own.
#pragma once
#include <math.h>

#include "emulation.h"
#include "vector_types.h"

#ifdef FASTCNN_EMULATED_ARCH  // 750, 800, ...: whose path the kernels take
#define __CUDA_ARCH__ FASTCNN_EMULATED_ARCH
#endif
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after another
#define __align__(bytes) __attribute__((aligned(bytes)))

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// --- Built-in variables ----------------------------------------------------------------------------------------------
#define threadIdx (emulation::builtin.thread_index)
#define blockIdx (emulation::builtin.block_index)
#define blockDim (emulation::builtin.block_size)
#define gridDim (emulation::builtin.grid_size)
constexpr int warpSize = 32;

// --- Barriers: every thread of the block must come, and to the same place
// ---------------------------------------------
inline void __syncthreads(emulation::Site site = {}) { emulation::sync_threads(0, site); }
inline int __syncthreads_count(int predicate, emulation::Site site = {}) {
  return emulation::sync_threads(predicate != 0, site);
}
inline int __syncthreads_or(int predicate, emulation::Site site = {}) {
  return emulation::sync_threads(predicate != 0, site) > 0;
}
inline int __syncthreads_and(int predicate, emulation::Site site = {}) {
  return emulation::sync_threads(predicate == 0, site) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// --- Warp collectives: every lane of the mask must come
// ---------------------------------------------------------------
inline void __syncwarp(unsigned mask = 0xffffffff, emulation::Site site = {}) { emulation::sync_warp(mask, site); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, emulation::Site site = {}) {
  const int self = emulation::lane(), first = self / width * width;
  return emulation::shuffle("__shfl_sync", mask, value, first + (lane & (width - 1)), site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, emulation::Site site = {}) {
  const int self = emulation::lane(), from = self ^ bits;
  return emulation::shuffle("__shfl_xor_sync", mask, value, from / width > self / width ? self : from, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, emulation::Site site = {}) {
  const int self = emulation::lane(), from = self + static_cast<int>(delta);
  return emulation::shuffle("__shfl_down_sync", mask, value, from / width > self / width ? self : from, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, emulation::Site site = {}) {
  const int self = emulation::lane(), first = self / width * width, from = self - static_cast<int>(delta);
  return emulation::shuffle("__shfl_up_sync", mask, value, from < first ? self : from, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, emulation::Site site = {}) {
  return emulation::ballot("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, emulation::Site site = {}) {
  return emulation::ballot("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulation::Site site = {}) {
  return emulation::ballot("__all_sync", mask, predicate == 0, site) == 0;
}

// --- Atomics: only integers, whose result does not depend on the order
// -------------------------------------------------
template <typename T>
T atomicAdd(T* address, T value) {
  return emulation::atomic(address, [value](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicOr(T* address, T value) {
  return emulation::atomic(address, [value](T old) { return static_cast<T>(old | value); });
}
template <typename T>
T atomicMax(T* address, T value) {
  return emulation::atomic(address, [value](T old) { return old > value ? old : value; });
}

// --- Device functions
// --------------------------------------------------------------------------------------------------
template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline size_t __cvta_generic_to_shared(const void* pointer) { return reinterpret_cast<size_t>(pointer); }
#define FASTCNN_MIN_MAX(T)                         \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
FASTCNN_MIN_MAX(int)
FASTCNN_MIN_MAX(unsigned)
FASTCNN_MIN_MAX(long)
FASTCNN_MIN_MAX(unsigned long)
FASTCNN_MIN_MAX(long long)
FASTCNN_MIN_MAX(unsigned long long)
#undef FASTCNN_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }  // as fmin does: the number, where one is NaN
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
