// conv2d as an implicit GEMM: the loop over the depth with double-buffered tiles in shared memory, and the two ways to
// multiply them, by FMA and by tensor cores. The loaders and the writer of the passes are in conv2d_gemm_tiles.cuh.
#pragma once
#include <mma.h>

#include <type_traits>

#include "conv2d_gemm_tiles.cuh"

// Tensor cores take float16 everywhere, bfloat16 and TensorFloat-32 from capability 8.0 on. Below it bfloat16 goes the
// way of float32. Code that the launcher will not ask for is left out; the host sees all of it.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define FASTCNN_NEW_TENSOR_CORES
#endif
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
#define FASTCNN_OLD_TENSOR_CORES
#endif

namespace fastcnn::cuda {

#ifdef FASTCNN_NEW_TENSOR_CORES
constexpr bool kHasNewCores = true;
#else
constexpr bool kHasNewCores = false;
#endif
#ifdef FASTCNN_OLD_TENSOR_CORES
constexpr bool kHasOldCores = true;
#else
constexpr bool kHasOldCores = false;
#endif

// --- FMA: a thread computes 8 x 8 elements, 8 x 4 of a narrow tile ---

template <typename T, Conv2dPass kPass, int kTileN>
struct FmaTile {
  using C = Compute<T>;
  // 64 bytes a line, but 32 of half elements, as their tiles are kept in float32.
  static constexpr int kDepth = 64 / sizeof(C);
  static constexpr int kRun = kVector<C>;
  static constexpr int kPitchM = kTileM<T> + kRun,
                       kPitchN = kTileN + kRun;  // padding spreads the stores over the banks
  static constexpr int kThreadsN = 8, kThreadsM = kGemmThreads / kThreadsN;
  static constexpr int kItemsM = kTileM<T> / kThreadsM, kItemsN = kTileN / kThreadsN;
  using Image = ImageTile<T, kPass, kDepth>;
  using Matrix = MatrixTile<T, kPass, kTileN, kDepth>;

  struct Shared {
    alignas(16) C image[2][kDepth * kPitchM];   // [depth][row]
    alignas(16) C matrix[2][kDepth * kPitchN];  // [depth][column]
  };

  __device__ FmaTile() {
#pragma unroll
    for (int i = 0; i < kItemsM; ++i)
#pragma unroll
      for (int j = 0; j < kItemsN; ++j) sums_[i][j] = 0;
  }

  template <typename Map, int kPitch>
  __device__ static void put(const Vec<T> (&staged)[Map::kCount], C* tile) {
#pragma unroll
    for (int i = 0; i < Map::kCount; ++i)
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e) {
        const int line = Map::line(i), along = Map::along() + e;
        tile[Map::kIsAlongDepth ? along * kPitch + line : line * kPitch + along] = to_compute(staged[i][e]);
      }
  }
  __device__ static void put(Shared& shared, int stage, const typename Image::Staged& image,
                             const typename Matrix::Staged& matrix) {
    put<typename Image::Map, kPitchM>(image, shared.image[stage]);
    put<typename Matrix::Map, kPitchN>(matrix, shared.matrix[stage]);
  }

  // Items come in runs of 16 bytes, neighbouring threads' side by side.
  __device__ static int row(int i) { return i / kRun * (kThreadsM * kRun) + threadIdx.x / kThreadsN * kRun + i % kRun; }
  __device__ static int column(int j) {
    return j / kRun * (kThreadsN * kRun) + threadIdx.x % kThreadsN * kRun + j % kRun;
  }

  __device__ void multiply(const Shared& shared, int stage) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      Vec<C> rows[kItemsM / kRun], columns[kItemsN / kRun];
#pragma unroll
      for (int i = 0; i < kItemsM; i += kRun) rows[i / kRun] = load_vector(&shared.image[stage][d * kPitchM + row(i)]);
#pragma unroll
      for (int j = 0; j < kItemsN; j += kRun)
        columns[j / kRun] = load_vector(&shared.matrix[stage][d * kPitchN + column(j)]);
#pragma unroll
      for (int i = 0; i < kItemsM; ++i)
#pragma unroll
        for (int j = 0; j < kItemsN; ++j) sums_[i][j] += rows[i / kRun][i % kRun] * columns[j / kRun][j % kRun];
    }
  }

  __device__ void store(Shared&, const GemmResult<T, kPass>& result) const {
#pragma unroll
    for (int line = 0; line < (result.kAlongRows ? kItemsN : kItemsM); ++line)
#pragma unroll
      for (int along = 0; along < (result.kAlongRows ? kItemsM : kItemsN); along += kRun) {
        const int i = result.kAlongRows ? along : line, j = result.kAlongRows ? line : along;
        C run[kRun];
#pragma unroll
        for (int e = 0; e < kRun; ++e) run[e] = result.kAlongRows ? sums_[i + e][j] : sums_[i][j + e];
        result.template store<kRun>(row(i), column(j), run);
      }
  }

 private:
  C sums_[kItemsM][kItemsN];
};

// --- tensor cores: a warp computes 4 x 2 fragments of 16 x 16 elements, 2 x 2 of a narrow tile ---

template <typename T>
struct WmmaElement {
  using Type = T;
  static constexpr int kDepth = 16;
};
#ifdef FASTCNN_NEW_TENSOR_CORES
template <>
struct WmmaElement<float> {
  using Type = nvcuda::wmma::precision::tf32;
  static constexpr int kDepth = 8;
};
#endif

template <typename T, Conv2dPass kPass, int kTileN>
struct WmmaTile {
  static constexpr int kDepth = 64 / sizeof(T);
  using Image = ImageTile<T, kPass, kDepth>;
  using Matrix = MatrixTile<T, kPass, kTileN, kDepth>;
  using ImageMap = typename Image::Map;
  using MatrixMap = typename Matrix::Map;
  // Lines as they come from memory. Padding of 16 bytes (32 along rows of float32) keeps neighbouring lines in other
  // banks, and every fragment at a multiple of 32 bytes.
  static constexpr int pitch(int length) { return length + (sizeof(T) == 4 && length >= kNarrow ? 8 : kVector<T>); }
  static constexpr int kImagePitch = pitch(ImageMap::kLength), kMatrixPitch = pitch(MatrixMap::kLength);
  static constexpr int kWarps = kGemmThreads / 32, kWarpsN = kTileN / 32, kFragment = 16;
  static constexpr int kFragmentsM = kTileM<T> * kWarpsN / kWarps / kFragment, kFragmentsN = 2;
  static constexpr int kResultPitch = kFragment + 4;

  union Shared {
    struct {
      alignas(32) T image[2][ImageMap::kLines * kImagePitch];
      alignas(32) T matrix[2][MatrixMap::kLines * kMatrixPitch];
    } tiles;
    alignas(32) float result[kWarps][kFragment * kResultPitch];  // once the tiles are done with
  };

  __device__ WmmaTile() {
#pragma unroll
    for (auto& row : sums_)
#pragma unroll
      for (auto& sum : row) nvcuda::wmma::fill_fragment(sum, 0.0f);
  }

  template <typename Map, int kPitch>
  __device__ static void put(const Vec<T> (&staged)[Map::kCount], T* tile) {
#pragma unroll
    for (int i = 0; i < Map::kCount; ++i) store_vector(tile + Map::line(i) * kPitch + Map::along(), rounded(staged[i]));
  }
  __device__ static void put(Shared& shared, int stage, const typename Image::Staged& image,
                             const typename Matrix::Staged& matrix) {
    put<ImageMap, kImagePitch>(image, shared.tiles.image[stage]);
    put<MatrixMap, kMatrixPitch>(matrix, shared.tiles.matrix[stage]);
  }

  __device__ static int warp_row() { return threadIdx.x / 32 / kWarpsN * (kFragmentsM * kFragment); }
  __device__ static int warp_column() { return threadIdx.x / 32 % kWarpsN * (kFragmentsN * kFragment); }

  __device__ void multiply(const Shared& shared, int stage) {
    namespace wmma = nvcuda::wmma;
    using ImageLayout = std::conditional_t<ImageMap::kIsAlongDepth, wmma::row_major, wmma::col_major>;
    using MatrixLayout = std::conditional_t<MatrixMap::kIsAlongDepth, wmma::col_major, wmma::row_major>;
    constexpr int kStep = WmmaElement<T>::kDepth;
    using Number = typename WmmaElement<T>::Type;
#pragma unroll
    for (int d = 0; d < kDepth; d += kStep) {
      wmma::fragment<wmma::matrix_a, kFragment, kFragment, kStep, Number, ImageLayout> rows[kFragmentsM];
      wmma::fragment<wmma::matrix_b, kFragment, kFragment, kStep, Number, MatrixLayout> columns[kFragmentsN];
#pragma unroll
      for (int i = 0; i < kFragmentsM; ++i) {
        const int row = warp_row() + i * kFragment;
        const int at = ImageMap::kIsAlongDepth ? row * kImagePitch + d : d * kImagePitch + row;
        wmma::load_matrix_sync(rows[i], shared.tiles.image[stage] + at, kImagePitch);
      }
#pragma unroll
      for (int j = 0; j < kFragmentsN; ++j) {
        const int column = warp_column() + j * kFragment;
        const int at = MatrixMap::kIsAlongDepth ? column * kMatrixPitch + d : d * kMatrixPitch + column;
        wmma::load_matrix_sync(columns[j], shared.tiles.matrix[stage] + at, kMatrixPitch);
      }
#pragma unroll
      for (int i = 0; i < kFragmentsM; ++i)
#pragma unroll
        for (int j = 0; j < kFragmentsN; ++j) wmma::mma_sync(sums_[i][j], rows[i], columns[j], sums_[i][j]);
    }
  }

  // Through shared memory, as only wmma knows which element a lane of a fragment holds.
  __device__ void store(Shared& shared, const GemmResult<T, kPass>& result) const {
    constexpr int kRun = kFragment / 2;
    float* room = shared.result[threadIdx.x / 32];
    const int lane = threadIdx.x % 32, line = lane / 2, along = lane % 2 * kRun;
#pragma unroll
    for (int i = 0; i < kFragmentsM; ++i)
#pragma unroll
      for (int j = 0; j < kFragmentsN; ++j) {
        nvcuda::wmma::store_matrix_sync(room, sums_[i][j], kResultPitch,
                                        result.kAlongRows ? nvcuda::wmma::mem_col_major : nvcuda::wmma::mem_row_major);
        __syncwarp();
        float run[kRun];
#pragma unroll
        for (int e = 0; e < kRun; ++e) run[e] = room[line * kResultPitch + along + e];
        __syncwarp();
        const int row = warp_row() + i * kFragment, column = warp_column() + j * kFragment;
        result.template store<kRun>(row + (result.kAlongRows ? along : line),
                                    column + (result.kAlongRows ? line : along), run);
      }
  }

 private:
  // float32 becomes TensorFloat-32, once for all warps that read it.
  __device__ static Vec<T> rounded(Vec<T> vec) {
#ifdef FASTCNN_NEW_TENSOR_CORES
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e) vec[e] = nvcuda::wmma::__float_to_tf32(vec[e]);
    }
#endif
    return vec;
  }

  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kFragment, kFragment, WmmaElement<T>::kDepth, float>
      sums_[kFragmentsM][kFragmentsN];
};

// --- the loop ---

template <typename Tile, typename T, Conv2dPass kPass, int kTileN>
__device__ __forceinline__ void conv2d_gemm(const Conv2dProblem& p, typename Tile::Shared& shared) {
  // 1. What the block computes. Phases have different numbers of positions.
  const GemmBlock block = gemm_block<T, kPass, kTileN>(p);
  if (block.row >= block.rows) return;
  Tile tile;

  // 2. While a tile is multiplied, the next one is on its way to registers, then to the other stage.
  const int steps = static_cast<int>((block.depth_end - block.depth_begin + Tile::kDepth - 1) / Tile::kDepth);
  if (steps > 0) {
    typename Tile::Image image(p, block);
    typename Tile::Matrix matrix(p, block);
    typename Tile::Image::Staged staged_image;
    typename Tile::Matrix::Staged staged_matrix;
    image.load(staged_image);
    matrix.load(staged_matrix);
    Tile::put(shared, 0, staged_image, staged_matrix);
    __syncthreads();
    for (int step = 0; step < steps; ++step) {
      const bool more = step + 1 < steps;
      if (more) {
        image.advance(step + 1);
        matrix.advance(step + 1);
        image.load(staged_image);
        matrix.load(staged_matrix);
      }
      tile.multiply(shared, step % 2);
      if (more) Tile::put(shared, (step + 1) % 2, staged_image, staged_matrix);
      __syncthreads();
    }
  }

  // 3. Bias, ReLU and rounding on the way out.
  tile.store(shared, GemmResult<T, kPass>(p, block));
}

template <typename T, Conv2dPass kPass, int kTileN>
__global__ void __launch_bounds__(kGemmThreads, 2) conv2d_gemm_fma_kernel(const Conv2dProblem p) {
  if constexpr (sizeof(T) >= 4 || kHasOldCores) {
    using Tile = FmaTile<T, kPass, kTileN>;
    __shared__ typename Tile::Shared shared;
    conv2d_gemm<Tile, T, kPass, kTileN>(p, shared);
  }
}

template <typename T, Conv2dPass kPass, int kTileN>
__global__ void __launch_bounds__(kGemmThreads, 2) conv2d_gemm_wmma_kernel(const Conv2dProblem p) {
  if constexpr (std::is_same_v<T, __half> || kHasNewCores) {
    using Tile = WmmaTile<T, kPass, kTileN>;
    __shared__ typename Tile::Shared shared;
    conv2d_gemm<Tile, T, kPass, kTileN>(p, shared);
  }
}

}  // namespace fastcnn::cuda
