// The kernels of faults_launch.h, by their names.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include <cstring>

#include "cuda/launch.cuh"
#include "faults_launch.h"

namespace fastcnn::cuda {
namespace {

constexpr unsigned kAll = 0xffffffff;

// --- Kernels that are right
// -------------------------------------------------------------------------------------------
__global__ void reverse_kernel(const FaultsArgs args) {
  __shared__ float tile[1024];
  const unsigned i = threadIdx.x;
  tile[i] = args.input[i];
  __syncthreads();
  const float value = tile[blockDim.x - 1 - i];
  __syncthreads();
  tile[i] = value;
  args.output[i] = tile[i];
}

__global__ void warp_sum_kernel(const FaultsArgs args) {
  float sum = args.input[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAll, sum, step);
  float down = args.input[threadIdx.x];
  for (unsigned step = 16; step > 0; step /= 2) down += __shfl_down_sync(kAll, down, step);
  const unsigned votes = __ballot_sync(kAll, args.input[threadIdx.x] > 0);
  const bool same = __shfl_sync(kAll, down, 0) == sum;
  args.output[threadIdx.x] = same ? sum + static_cast<float>(__popc(votes)) : -1;
}

// One warp reads what its own lanes wrote: __syncwarp orders them.
__global__ void warp_reverse_kernel(const FaultsArgs args) {
  __shared__ float tile[1024];
  const unsigned i = threadIdx.x;
  tile[i] = args.input[i];
  __syncwarp();
  args.output[i] = tile[i ^ 31];
}

__global__ void count_kernel(const FaultsArgs args) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1);
  const int positive = __syncthreads_count(args.input[threadIdx.x] > 0);
  args.output[threadIdx.x] = static_cast<float>(count + positive);
}

__global__ void round_half_kernel(const FaultsArgs args) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  args.output[i] = __half2float(__float2half_rn(args.input[i]));
}
__global__ void round_bfloat16_kernel(const FaultsArgs args) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  args.output[i] = __bfloat162float(__float2bfloat16_rn(args.input[i]));
}

// output [16, 16] = input [16, 16] times its transpose, in T.
template <typename T, int K, typename Round>
__device__ void multiply(const FaultsArgs& args, const Round& round) {
  using namespace nvcuda::wmma;
  using Storage = decltype(round(0.0f));
  __shared__ __align__(32) Storage tile[256];
  for (unsigned i = threadIdx.x; i < 256; i += 32) {
    const Storage rounded = round(args.input[i]);
    tile[i] = rounded;
  }
  __syncwarp();
  fragment<accumulator, 16, 16, K, float> sum;
  fill_fragment(sum, 0.0f);
  for (int k = 0; k < 16; k += K) {
    fragment<matrix_a, 16, 16, K, T, row_major> a;
    fragment<matrix_b, 16, 16, K, T, col_major> b;
    load_matrix_sync(a, tile + k, 16);
    load_matrix_sync(b, tile + k, 16);
    mma_sync(sum, a, b, sum);
  }
  store_matrix_sync(args.output, sum, 16, mem_row_major);
}
__global__ void half_kernel(const FaultsArgs args) {
  multiply<__half, 16>(args, [](float x) { return __float2half_rn(x); });
}
__global__ void bfloat16_kernel(const FaultsArgs args) {
  multiply<__nv_bfloat16, 16>(args, [](float x) { return __float2bfloat16_rn(x); });
}
__global__ void tf32_kernel(const FaultsArgs args) {
  multiply<nvcuda::wmma::precision::tf32, 8>(args, [](float x) { return nvcuda::wmma::__float_to_tf32(x); });
}

// --- Kernels that are wrong
// -------------------------------------------------------------------------------------------
__global__ void read_outside_kernel(const FaultsArgs args) { args.output[threadIdx.x] = args.input[threadIdx.x + 1]; }
__global__ void write_outside_kernel(const FaultsArgs args) { args.output[threadIdx.x + 1] = 1; }
__global__ void write_input_kernel(const FaultsArgs args) { const_cast<float*>(args.input)[threadIdx.x] = 1; }
__global__ void misaligned_kernel(const FaultsArgs args) {
  args.output[threadIdx.x] = static_cast<float>(*reinterpret_cast<const double*>(args.input + 1));
}
__global__ void unwritten_kernel(const FaultsArgs args) {
  __shared__ float tile[1024];
  if (threadIdx.x != 3) tile[threadIdx.x] = 1;
  __syncthreads();
  args.output[threadIdx.x] = tile[threadIdx.x];
}
// What the first block wrote does not count for the second.
__global__ void unwritten_later_kernel(const FaultsArgs args) {
  __shared__ float once[32];
  if (blockIdx.x == 0 || threadIdx.x > 0) once[threadIdx.x % 32] = 1;
  __syncthreads();
  if (threadIdx.x == 0) args.output[0] = once[0];
}
__global__ void read_write_race_kernel(const FaultsArgs args) {
  __shared__ float tile[1024];
  tile[threadIdx.x] = args.input[threadIdx.x];
  __syncthreads();
  const float value = tile[blockDim.x - 1 - threadIdx.x];
  tile[threadIdx.x] = value;
  args.output[threadIdx.x] = value;
}
__global__ void write_write_race_kernel(const FaultsArgs args) {
  __shared__ float tile[1024];
  tile[threadIdx.x / 2] = 1;
  __syncthreads();
  args.output[threadIdx.x] = tile[threadIdx.x / 2];
}
__global__ void other_warp_race_kernel(const FaultsArgs args) {
  __shared__ float tile[1024];
  tile[threadIdx.x] = args.input[threadIdx.x];
  __syncwarp();
  args.output[threadIdx.x] = tile[threadIdx.x ^ 32];
}
__global__ void missing_syncwarp_kernel(const FaultsArgs args) {
  __shared__ float tile[1024];
  tile[threadIdx.x] = args.input[threadIdx.x];
  args.output[threadIdx.x] = __shfl_xor_sync(kAll, tile[threadIdx.x ^ 1], 1);
}
__global__ void atomic_race_kernel(const FaultsArgs args) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1);
  args.output[threadIdx.x] = static_cast<float>(count);
}
__global__ void unwritten_atomic_kernel(const FaultsArgs args) {
  __shared__ int count;
  args.output[threadIdx.x] = static_cast<float>(atomicAdd(&count, 1));
}
__global__ void returned_barrier_kernel(const FaultsArgs args) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  args.output[threadIdx.x] = 1;
}
__global__ void divergent_barrier_kernel(const FaultsArgs args) {
  if (threadIdx.x < 7) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  args.output[threadIdx.x] = 1;
}
__global__ void missing_lane_kernel(const FaultsArgs args) {
  if (threadIdx.x != 9) args.output[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0);
}
__global__ void wrong_lane_kernel(const FaultsArgs args) {
  const unsigned mask = threadIdx.x % 32 < 16 ? 0xffff : 0xffff0000;
  args.output[threadIdx.x] = __shfl_sync(mask, 1.0f, 17);
}
__global__ void absent_lane_kernel(const FaultsArgs args) {
  args.output[threadIdx.x] = __shfl_sync(threadIdx.x == 0 ? 0xfffffffe : kAll, 1.0f, 1);
}
__global__ void unrounded_kernel(const FaultsArgs args) {
  multiply<nvcuda::wmma::precision::tf32, 8>(args, [](float x) { return x; });
}
__global__ void unsynchronised_matrix_kernel(const FaultsArgs args) {
  using namespace nvcuda::wmma;
  __shared__ __align__(32) float tile[256];
  fragment<accumulator, 16, 16, 16, float> sum;
  fill_fragment(sum, 1.0f);
  store_matrix_sync(tile, sum, 16, mem_row_major);
  args.output[threadIdx.x] = tile[threadIdx.x];
}
// For the sanitizers: what checker.cpp does not see.
__global__ void shared_outside_kernel(const FaultsArgs args) {
  __shared__ float tile[64];
  float* behind = tile + args.threads;
  behind[threadIdx.x] = 1;
  args.output[threadIdx.x] = tile[threadIdx.x];
}
__global__ void local_outside_kernel(const FaultsArgs args) {
  volatile float local[4] = {};
  args.output[threadIdx.x] = local[args.threads];
}
__global__ void overflow_kernel(const FaultsArgs args) {
  args.output[threadIdx.x] = static_cast<float>(static_cast<int>(args.threads) * 0x7fffff0);
}
__global__ void too_many_threads_kernel(const FaultsArgs) {}

}  // namespace

cudaError_t launch_faults(const FaultsArgs& args, cudaStream_t stream) {
#define FASTCNN_KERNEL(NAME) \
  {                          \
    #NAME, NAME              \
  }
  const struct {
    const char* name;
    void (*kernel)(FaultsArgs);
  } kernels[] = {
      FASTCNN_KERNEL(reverse_kernel),
      FASTCNN_KERNEL(warp_sum_kernel),
      FASTCNN_KERNEL(warp_reverse_kernel),
      FASTCNN_KERNEL(count_kernel),
      FASTCNN_KERNEL(half_kernel),
      FASTCNN_KERNEL(bfloat16_kernel),
      FASTCNN_KERNEL(tf32_kernel),
      FASTCNN_KERNEL(read_outside_kernel),
      FASTCNN_KERNEL(write_outside_kernel),
      FASTCNN_KERNEL(write_input_kernel),
      FASTCNN_KERNEL(misaligned_kernel),
      FASTCNN_KERNEL(unwritten_kernel),
      FASTCNN_KERNEL(unwritten_later_kernel),
      FASTCNN_KERNEL(read_write_race_kernel),
      FASTCNN_KERNEL(write_write_race_kernel),
      FASTCNN_KERNEL(other_warp_race_kernel),
      FASTCNN_KERNEL(missing_syncwarp_kernel),
      FASTCNN_KERNEL(atomic_race_kernel),
      FASTCNN_KERNEL(unwritten_atomic_kernel),
      FASTCNN_KERNEL(returned_barrier_kernel),
      FASTCNN_KERNEL(divergent_barrier_kernel),
      FASTCNN_KERNEL(missing_lane_kernel),
      FASTCNN_KERNEL(wrong_lane_kernel),
      FASTCNN_KERNEL(absent_lane_kernel),
      FASTCNN_KERNEL(unrounded_kernel),
      FASTCNN_KERNEL(unsynchronised_matrix_kernel),
      FASTCNN_KERNEL(too_many_threads_kernel),
      FASTCNN_KERNEL(shared_outside_kernel),
      FASTCNN_KERNEL(local_outside_kernel),
      FASTCNN_KERNEL(overflow_kernel),
      FASTCNN_KERNEL(round_half_kernel),
      FASTCNN_KERNEL(round_bfloat16_kernel),
  };
  for (const auto& [name, kernel] : kernels)
    if (strcmp(name, args.kernel) == 0) return launch(name, kernel, args.blocks, args.threads, stream, args);
  return cudaErrorInvalidValue;
}

}  // namespace fastcnn::cuda
