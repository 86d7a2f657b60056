// Element types in kernels: what they are computed in, their conversions, and their 16-byte vectors.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "element.h"

namespace fastcnn::cuda {

// T is float, double, __half or __nv_bfloat16.
template <typename T>
struct Element {
  using Compute = float;
};
template <>
struct Element<double> {
  using Compute = double;
};
template <typename T>
using Compute = typename Element<T>::Compute;

// Calls run<T>() with the element type of `dtype`.
template <typename Run>
auto with_element(Dtype dtype, const Run& run) {
  switch (dtype) {
    case Dtype::f64:
      return run.template operator()<double>();
    case Dtype::f16:
      return run.template operator()<__half>();
    case Dtype::bf16:
      return run.template operator()<__nv_bfloat16>();
    default:
      return run.template operator()<float>();
  }
}

__device__ __forceinline__ float to_compute(float x) { return x; }
__device__ __forceinline__ double to_compute(double x) { return x; }
__device__ __forceinline__ float to_compute(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_compute(__nv_bfloat16 x) { return __bfloat162float(x); }

// Rounds to the nearest, ties to even.
template <typename T>
__device__ __forceinline__ T from_compute(Compute<T> x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_compute<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_compute<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// 16 bytes of elements: what a thread loads or stores in one instruction.
template <typename T>
constexpr int kVector = static_cast<int>(16 / sizeof(T));
template <typename T>
struct alignas(16) Vec {
  T values[kVector<T>];
  __device__ T& operator[](int i) { return values[i]; }
  __device__ const T& operator[](int i) const { return values[i]; }
};

// `from` and `to` are multiples of 16 bytes here.
template <typename T>
__device__ __forceinline__ Vec<T> load_vector(const T* from) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  Vec<T> vec;
  __builtin_memcpy(&vec, &bits, sizeof(vec));
  return vec;
}
template <typename T>
__device__ __forceinline__ void store_vector(T* to, const Vec<T>& vec) {
  uint4 bits;
  __builtin_memcpy(&bits, &vec, sizeof(bits));
  *reinterpret_cast<uint4*>(to) = bits;
}

// The same to global memory. In assembly, because the compiler splits a store of 16 bytes where another branch stores
// the elements one by one.
template <typename T>
__device__ __forceinline__ void store_global_vector(T* to, const Vec<T>& vec) {
#ifdef __CUDACC__
  unsigned bits[4];
  __builtin_memcpy(bits, &vec, sizeof(bits));
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(bits[0]),
               "r"(bits[1]), "r"(bits[2]), "r"(bits[3])
               : "memory");
#else
  store_vector(to, vec);
#endif
}

// The first `count` elements, and zeros; element by element unless all are there and `aligned` says that `from` is a
// multiple of 16 bytes. Nothing beyond them is read; `count` may be negative. They are stored to global memory.
template <typename T>
__device__ __forceinline__ Vec<T> load_vector(const T* from, int64_t count, bool aligned) {
  if (aligned && count >= kVector<T>) return load_vector(from);
  Vec<T> vec;
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) vec[i] = i < count ? from[i] : from_compute<T>(0);
  return vec;
}
template <typename T>
__device__ __forceinline__ void store_vector(T* to, const Vec<T>& vec, int64_t count, bool aligned) {
  if (aligned && count >= kVector<T>) return store_global_vector(to, vec);
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i)
    if (i < count) to[i] = vec[i];
}

// Whether a pointer, or a stride in bytes, is a multiple of 16 bytes.
inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }
inline bool is_aligned(int64_t bytes) { return bytes % 16 == 0; }

}  // namespace fastcnn::cuda
