// nvcuda::wmma for g++: a fragment's elements are spread over the lanes, and each operation is a warp's collective. The
// spreading is not a GPU's, which is unspecified; kernels may only treat all elements x[i] alike.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
namespace precision {
struct tf32;
}
enum layout_t { mem_row_major, mem_col_major };

// The shapes of the instructions: 16x16x16, 32x8x16 and 8x32x16 for half types, 16x16x8 for tf32.
template <int M, int N, int K, typename T>
constexpr bool kHasShape = std::is_same_v<T, precision::tf32>
                               ? M == 16 && N == 16 && K == 8
                               : K == 16 && ((M == 16 && N == 16) || (M == 32 && N == 8) || (M == 8 && N == 32));

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  static constexpr bool kAccumulates = std::is_same_v<Use, accumulator>;
  static_assert(kAccumulates || kHasShape<M, N, K, T>, "no such shape");
  static_assert(!kAccumulates || std::is_same_v<T, float>, "only float accumulators are emulated");
#ifdef __CUDA_ARCH__
  static_assert(__CUDA_ARCH__ >= 800 || kAccumulates || std::is_same_v<T, __half>, "before 8.0 only __half");
#endif
  using Storage = std::conditional_t<std::is_same_v<T, precision::tf32>, float, T>;
  using element_type = Storage;
  static constexpr int kRows = std::is_same_v<Use, matrix_b> ? K : M;
  static constexpr int kCols = std::is_same_v<Use, matrix_a> ? K : N;
  static constexpr int num_elements = kRows * kCols / 32;
  static constexpr int num_storage_elements = num_elements;
  Storage x[num_elements];
};

// Rounds to the 10 bits of TF32's mantissa, ties away from zero.
inline float __float_to_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7f800000) == 0x7f800000) return x;
  return __uint_as_float((bits + 0x1000) & 0xffffe000);
}

template <typename Use, int M, int N, int K, typename T, typename Layout>
void fill_fragment(fragment<Use, M, N, K, T, Layout>& f, const auto& value) {
  for (auto& x : f.x) x = value;
}

template <typename Fragment>
struct Move {
  Fragment* fragment;
  void* memory;
  unsigned stride;  // in elements, between rows or columns
  bool by_columns;
};

// Element (row, col) belongs to lane (row cols + col) % 32.
template <typename Fragment, typename Copy>
void move(const emulation::Lanes& lanes, emulation::Kind kind, const Copy& copy) {
  using T = typename Fragment::Storage;
  const Move<Fragment>& first = lanes.at<Move<Fragment>>(0);
  if (reinterpret_cast<uintptr_t>(first.memory) % 32 != 0 || first.stride * sizeof(T) % 16 != 0)
    emulation::fail("a wmma matrix must start at a multiple of 32 bytes, with rows of 16: %p, rows of %zu bytes",
                    first.memory, first.stride * sizeof(T));
  for (int i = 1; i < 32; ++i) {
    const Move<Fragment>& other = lanes.at<Move<Fragment>>(i);
    if (other.memory != first.memory || other.stride != first.stride || other.by_columns != first.by_columns)
      emulation::fail("lanes 0 and %d give wmma different matrices", i);
  }
  for (int e = 0; e < Fragment::kRows * Fragment::kCols; ++e) {
    const unsigned row = e / Fragment::kCols, col = e % Fragment::kCols;
    T* memory = static_cast<T*>(first.memory) +
                (first.by_columns ? size_t{col} * first.stride + row : size_t{row} * first.stride + col);
    emulation::check_warp_access(memory, sizeof(T), kind);
    copy(lanes.at<Move<Fragment>>(e % 32).fragment->x[e / 32], *memory);
  }
}

template <typename Fragment>
void load(Fragment& f, const void* memory, unsigned stride, bool by_columns, const emulation::Site& site) {
  Move<Fragment> request{&f, const_cast<void*>(memory), stride, by_columns};
  const auto complete = [](const emulation::Lanes& lanes) {
    move<Fragment>(lanes, emulation::Kind::read, [](auto& element, const auto& memory) { element = memory; });
  };
  emulation::collective("load_matrix_sync", 0xffffffff, &request, complete, site);
}

template <typename Use, int M, int N, int K, typename T, typename Layout>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const auto* memory, unsigned stride,
                      emulation::Site site = {}) {
  static_assert(sizeof(*memory) == sizeof(f.x[0]));
  load(f, memory, stride, std::is_same_v<Layout, col_major>, site);
}
template <int M, int N, int K, typename T>
void load_matrix_sync(fragment<accumulator, M, N, K, T>& f, const T* memory, unsigned stride, layout_t layout,
                      emulation::Site site = {}) {
  load(f, memory, stride, layout == mem_col_major, site);
}
template <int M, int N, int K, typename T>
void store_matrix_sync(T* memory, const fragment<accumulator, M, N, K, T>& f, unsigned stride, layout_t layout,
                       emulation::Site site = {}) {
  using Fragment = fragment<accumulator, M, N, K, T>;
  Move<Fragment> request{const_cast<Fragment*>(&f), memory, stride, layout == mem_col_major};
  const auto complete = [](const emulation::Lanes& lanes) {
    move<Fragment>(lanes, emulation::Kind::write, [](const auto& element, auto& memory) { memory = element; });
  };
  emulation::collective("store_matrix_sync", 0xffffffff, &request, complete, site);
}

inline float wide(__half x) { return __half2float(x); }
inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
inline float wide(float x) {
  if (__float_to_tf32(x) != x && x == x) emulation::fail("%g was not rounded by __float_to_tf32", x);
  return x;
}

// d = a b + c: exact products, accumulated in float.
template <int M, int N, int K, typename T, typename LayoutA, typename LayoutB>
void mma_sync(fragment<accumulator, M, N, K, float>& d, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
              const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, float>& c,
              emulation::Site site = {}) {
  struct Request {
    fragment<accumulator, M, N, K, float>* d;
    const fragment<matrix_a, M, N, K, T, LayoutA>* a;
    const fragment<matrix_b, M, N, K, T, LayoutB>* b;
    const fragment<accumulator, M, N, K, float>* c;
  } request{&d, &a, &b, &c};
  const auto complete = [](const emulation::Lanes& lanes) {
    float a[M][K], b[K][N];
    for (int e = 0; e < M * K; ++e) a[e / K][e % K] = wide(lanes.at<Request>(e % 32).a->x[e / 32]);
    for (int e = 0; e < K * N; ++e) b[e / N][e % N] = wide(lanes.at<Request>(e % 32).b->x[e / 32]);
    for (int e = 0; e < M * N; ++e) {
      const Request& request = lanes.at<Request>(e % 32);
      float sum = request.c->x[e / 32];
      for (int k = 0; k < K; ++k) sum += a[e / N][k] * b[k][e % N];
      request.d->x[e / 32] = sum;
    }
  };
  emulation::collective("mma_sync", 0xffffffff, &request, complete, site);
}

}  // namespace nvcuda::wmma
