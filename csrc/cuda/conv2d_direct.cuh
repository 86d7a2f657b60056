// Direct convolution for groups of few channels, where tiles of a GEMM would be mostly empty: a block keeps the patch
// of the image under a tile of positions in shared memory, zeros around the image included.
#pragma once
#include "conv2d_window.cuh"

namespace fastcnn::cuda {

constexpr int kDirectThreads = 128;
constexpr int kDirectQuad = 4;        // channels of the result that a thread computes, of one group
constexpr int kDirectPixels = 8;      // positions that it computes them at
constexpr int kDirectQuads = 16;      // quads of a block, at most: p.block_vectors
constexpr int kDirectDepth = 32;      // taps and channels whose weights are in shared memory at a time
constexpr int kPatchBytes = 24576;    // of the image; with the weights, within the 48 KiB that every GPU has
constexpr int kDirectRows = 4;        // taps and channels that a thread of the weight's gradient sums for its quad
constexpr int kGradTileBytes = 8192;  // of grad_output in the weight's gradient

// A group's channels in quads: number `quad` of all groups' belongs to a group and begins at a channel of it.
struct Quad {
  int group, channel;
};
__device__ inline Quad quad_at(int quad, int group_channels) {
  const int quads = (group_channels + kDirectQuad - 1) / kDirectQuad;
  return {quad / quads, quad % quads * kDirectQuad};
}

// A tile of the result's positions in image n, and the patch of the image that its windows cover.
struct PatchTile {
  int n, y, x;           // the first position
  int rows, columns;     // positions that exist
  int patch_y, patch_x;  // the patch's first element
};
__device__ inline PatchTile patch_tile(const Conv2dProblem& p, uint32_t tile, const WindowAxis& h,
                                       const WindowAxis& w) {
  const uint32_t across = (w.positions + p.tile_w - 1) / p.tile_w, down = (h.positions + p.tile_h - 1) / p.tile_h;
  PatchTile t;
  t.x = tile % across * p.tile_w, tile /= across;
  t.y = tile % down * p.tile_h, t.n = tile / down;
  t.rows = min(p.tile_h, h.positions - t.y), t.columns = min(p.tile_w, w.positions - t.x);
  t.patch_y = t.y * h.step + h.origin + min(0, (h.taps - 1) * h.tap_step);
  t.patch_x = t.x * w.step + w.origin + min(0, (w.taps - 1) * w.tap_step);
  return t;
}

// Copies channels [first, first + chunk) of the block's groups into the patch [patch_h, patch_w, block_groups, chunk];
// zeros outside the image and beyond a group's or the image's channels.
template <typename T>
__device__ inline void load_patch(const Conv2dProblem& p, const PatchTile& t, const WindowAxis& h, const WindowAxis& w,
                                  const T* image, int first_group, int group_channels, int first, T* patch) {
  const int channels = p.groups * group_channels, pitch = p.block_groups * p.chunk;
  const int units = pitch / p.patch_unit;
  for (int i = threadIdx.x; i < p.patch_h * p.patch_w * units; i += kDirectThreads) {
    const int pixel = p.patch_units.divide(i), at = (i - pixel * units) * p.patch_unit;
    const int patch_row = p.patch_columns.divide(pixel), block_group = p.chunks.divide(at);
    const int y = t.patch_y + patch_row, x = t.patch_x + pixel - patch_row * p.patch_w;
    const int group = first_group + block_group, c = first + at - block_group * p.chunk;
    const bool inside = is_inside(y, h.image) && is_inside(x, w.image) && group < p.groups && c < group_channels;
    const int64_t row = (static_cast<int64_t>(t.n) * h.image + y) * w.image + x;
    const T* from = image + row * channels + group * group_channels + c;
    T* to = patch + pixel * pitch + at;
    if (p.patch_unit == 1) {
      *to = inside ? *from : from_compute<T>(0);
    } else {
      store_vector(to, inside ? load_vector(from) : Vec<T>{});
    }
  }
}

// Puts weights into shared memory, kDirectDepth taps and channels at a time. A thread stages those of one channel of
// the result.
template <typename T>
class WeightStage {
 public:
  using Weights = Compute<T>[kDirectDepth][kDirectQuads * kDirectQuad];

  __device__ WeightStage(const Conv2dProblem& p, const WindowAxis& h, const WindowAxis& w, int first_quad)
      : p_(p), h_(h), w_(w), forward_(p.pass == Conv2dPass::forward), block_lanes_(p.block_vectors * kDirectQuad) {
    depth_ = forward_ ? p.group_in : p.group_out, lanes_ = forward_ ? p.group_out : p.group_in;
    place_ = static_cast<int>(threadIdx.x) % block_lanes_;
    const Quad quad = quad_at(first_quad + place_ / kDirectQuad, lanes_);
    group_ = quad.group, lane_ = quad.channel + place_ % kDirectQuad;
  }

  // From the first tap of channels [first, first + chunk).
  __device__ void begin(int first) {
    first_ = first;
    at_ = {0, 0, 0};
    at_.add(static_cast<int>(threadIdx.x) / block_lanes_, p_.chunk, w_.taps);
  }

  // The next kDirectDepth, of which `count` exist.
  __device__ void load(int count, Weights& weights) {
    const int step = kDirectThreads / block_lanes_;
    for (int d = static_cast<int>(threadIdx.x) / block_lanes_; d < kDirectDepth; d += step) {
      const int kh = h_.first_tap + at_.h * h_.kernel_step, kw = w_.first_tap + at_.w * w_.kernel_step;
      const int c = first_ + at_.c;
      const int64_t k = static_cast<int64_t>(group_) * p_.group_out + (forward_ ? lane_ : c);
      const int64_t from = k * p_.kernel_row + (kh * p_.w.kernel + kw) * p_.group_in + (forward_ ? c : lane_);
      const bool exists = group_ < p_.groups && lane_ < lanes_ && c < depth_ && d < count;
      weights[d][place_] = exists ? to_compute(static_cast<const T*>(p_.weight)[from]) : Compute<T>(0);
      at_.add(step, p_.chunk, w_.taps);
    }
  }

 private:
  const Conv2dProblem& p_;
  const WindowAxis &h_, &w_;
  bool forward_;
  int block_lanes_, depth_, lanes_;
  int place_, group_, lane_;  // of the thread's channel: in the block, and in the tensors
  int first_ = 0;
  TapPosition at_ = {0, 0, 0};
};

// Ends a thread's sums at its positions of a tile.
template <typename T>
__device__ inline void store_quads(const Conv2dProblem& p, const PatchTile& t, const WindowAxis& h, const WindowAxis& w,
                                   const Quad& quad, int slice, const Compute<T> (&sums)[kDirectPixels][kDirectQuad]) {
  if (quad.group >= p.groups) return;
  const int lanes = p.pass == Conv2dPass::forward ? p.group_out : p.group_in;
  const bool vectors = p.pass == Conv2dPass::forward ? p.out_vectors : p.in_vectors;
  const int64_t channel = static_cast<int64_t>(quad.group) * lanes + quad.channel;
#pragma unroll
  for (int i = 0; i < kDirectPixels; ++i) {
    const int pixel = slice + i * p.block_slices, y = p.tile_columns.divide(pixel), x = pixel - y * p.tile_w;
    if (y >= t.rows || x >= t.columns) continue;
    const int64_t to = result_offset({t.n, t.y + y, t.x + x}, h, w, p.groups * lanes) + channel;
    T* result = static_cast<T*>(p.result) + to;
    T values[kDirectQuad];
#pragma unroll
    for (int e = 0; e < kDirectQuad; ++e) {
      const bool biased = p.bias != nullptr && quad.channel + e < lanes;
      const Compute<T> bias = biased ? to_compute(static_cast<const T*>(p.bias)[channel + e]) : Compute<T>(0);
      values[e] = from_compute<T>(finish(sums[i][e], bias, p.relu));
    }
    constexpr int kWide = kVector<T> < kDirectQuad ? kVector<T> : kDirectQuad;
#pragma unroll
    for (int first = 0; first < kDirectQuad; first += kWide) {
      if (kWide == kVector<T> && vectors && quad.channel + first < lanes) {
        Vec<T> vec;
#pragma unroll
        for (int e = 0; e < kWide; ++e) vec[e] = values[first + e];
        store_global_vector(result + first, vec);
      } else {
#pragma unroll
        for (int e = first; e < first + kWide; ++e)
          if (quad.channel + e < lanes) result[e] = values[e];
      }
    }
  }
}

// The output, or the gradient of the input (one phase after the other).
template <typename T>
__global__ void __launch_bounds__(kDirectThreads, 3) conv2d_direct_kernel(const Conv2dProblem p) {
  using C = Compute<T>;
  alignas(16) __shared__ T patch[kPatchBytes / sizeof(T)];
  alignas(16) __shared__ C weights[kDirectDepth][kDirectQuads * kDirectQuad];

  // 1. The block's quads, phase and tile; the thread's quad and positions, which lie p.block_slices apart.
  const bool forward = p.pass == Conv2dPass::forward;
  const int depth = forward ? p.group_in : p.group_out, lanes = forward ? p.group_out : p.group_in;
  uint32_t index = blockIdx.x;
  const int first_quad = index % p.tiles_n * p.block_vectors;
  index /= p.tiles_n;
  const int tile = index % p.tiles_m, phase = index / p.tiles_m;
  const WindowAxis h = window_axis(p.h, p.pass, phase / p.phases_w), w = window_axis(p.w, p.pass, phase % p.phases_w);
  const PatchTile t = patch_tile(p, tile, h, w);
  if (t.n >= p.batch) return;
  const Quad quad = quad_at(first_quad + static_cast<int>(threadIdx.x) % p.block_vectors, lanes);
  const int first_group = quad_at(first_quad, lanes).group;
  const int pitch = p.block_groups * p.chunk, slice = static_cast<int>(threadIdx.x) / p.block_vectors;
  // Where tap 0 lies in the patch: taps may go backwards.
  const int tap_y = max(0, (1 - h.taps) * h.tap_step), tap_x = max(0, (1 - w.taps) * w.tap_step);
  int at[kDirectPixels];
#pragma unroll
  for (int i = 0; i < kDirectPixels; ++i) {
    const int pixel = min(slice + i * p.block_slices, p.tile_h * p.tile_w - 1);
    const int row = p.tile_columns.divide(pixel);
    const int y = row * h.step + tap_y, x = (pixel - row * p.tile_w) * w.step + tap_x;
    at[i] = (y * p.patch_w + x) * pitch + (quad.group - first_group) * p.chunk;
  }

  // 2. Some channels at a time, and of them some weights at a time.
  WeightStage<T> stage(p, h, w, first_quad);
  C sums[kDirectPixels][kDirectQuad] = {};
  const T* image = static_cast<const T*>(forward ? p.input : p.grad_output);
  const int terms = h.taps * w.taps * p.chunk;
  for (int first = 0; first < depth && terms > 0; first += p.chunk) {
    __syncthreads();
    load_patch(p, t, h, w, image, first_group, depth, first, patch);
    TapPosition tap = {0, 0, 0};
    stage.begin(first);
    for (int term = 0; term < terms; term += kDirectDepth) {
      const int count = min(kDirectDepth, terms - term);
      __syncthreads();
      stage.load(count, weights);
      __syncthreads();
      for (int d = 0; d < count; ++d) {
        const int offset = (tap.h * h.tap_step * p.patch_w + tap.w * w.tap_step) * pitch + tap.c;
        const C* weight = &weights[d][threadIdx.x % p.block_vectors * kDirectQuad];
        C quad_weights[kDirectQuad];
#pragma unroll
        for (int e = 0; e < kDirectQuad; ++e) quad_weights[e] = weight[e];
#pragma unroll
        for (int i = 0; i < kDirectPixels; ++i) {
          const C value = to_compute(patch[at[i] + offset]);
#pragma unroll
          for (int e = 0; e < kDirectQuad; ++e) sums[i][e] += value * quad_weights[e];
        }
        tap.add(1, p.chunk, w.taps);
      }
    }
  }

  // 3. Bias, ReLU and rounding.
  store_quads<T>(p, t, h, w, quad, slice, sums);
}

// Copies grad_output of a tile and the block's groups into [tile_h, tile_w, block_groups, quads, kDirectQuad]; zeros
// beyond a group's channels. Positions that do not exist are left out.
template <typename T>
__device__ inline void load_grads(const Conv2dProblem& p, const PatchTile& t, const WindowAxis& h, const WindowAxis& w,
                                  int first_group, T* grads) {
  const int group_lanes = (p.group_out + kDirectQuad - 1) / kDirectQuad * kDirectQuad;
  const int pitch = p.block_groups * group_lanes;
  for (int i = threadIdx.x; i < t.rows * p.tile_w * pitch; i += kDirectThreads) {
    const int pixel = p.grad_pitches.divide(i), y = p.tile_columns.divide(pixel), x = pixel - y * p.tile_w;
    if (x >= t.columns) continue;
    const int lane = i - pixel * pitch, group = first_group + lane / group_lanes, k = lane % group_lanes;
    const int64_t row = (static_cast<int64_t>(t.n) * h.positions + t.y + y) * w.positions + t.x + x;
    const T* from = static_cast<const T*>(p.grad_output) + row * p.out_channels + group * p.group_out + k;
    grads[i] = group < p.groups && k < p.group_out ? *from : from_compute<T>(0);
  }
}

// The weight's gradient over every parts-th tile of positions, from tile `part` on. A thread sums kDirectRows taps and
// channels of a quad's output channels; where a block's groups have few of them, p.block_slices threads share the
// positions, and each leaves a part: [part, slice, out_channels, kernel_row].
template <typename T>
__global__ void __launch_bounds__(kDirectThreads, 3) conv2d_direct_grad_weight_kernel(const Conv2dProblem p) {
  using C = Compute<T>;
  alignas(16) __shared__ T patch[kPatchBytes / sizeof(T)];
  alignas(16) __shared__ T grads[kGradTileBytes / sizeof(T)];

  // 1. The block's groups; the thread's quad, rows and slice of the positions.
  uint32_t index = blockIdx.x;
  const int unit_tile = index % p.tiles_m;
  index /= p.tiles_m;
  const int first_group = index % p.tiles_n * p.block_groups, part = index / p.tiles_n;
  const WindowAxis h = window_axis(p.h, Conv2dPass::grad_weight, 0), w = window_axis(p.w, Conv2dPass::grad_weight, 0);
  const int quads = (p.group_out + kDirectQuad - 1) / kDirectQuad;
  const int row_units = (p.kernel_row + kDirectRows - 1) / kDirectRows, units = p.block_groups * quads * row_units;
  const int thread_unit = unit_tile * kDirectThreads + static_cast<int>(threadIdx.x);
  const int slice = thread_unit / units, unit = thread_unit % units;
  const bool works = slice < p.block_slices;
  const int row = unit % row_units * kDirectRows, quad = unit / row_units;  // the quad's number in the block
  const int group = quad / quads, channel = quad % quads * kDirectQuad;
  const int pitch = p.block_groups * p.chunk, grad_pitch = p.block_groups * quads * kDirectQuad;
  int at[kDirectRows];
#pragma unroll
  for (int r = 0; r < kDirectRows; ++r) {
    const int term = min(row + r, p.kernel_row - 1), tap = term / p.group_in;
    at[r] = (tap / w.taps * h.tap_step * p.patch_w + tap % w.taps * w.tap_step) * pitch + group * p.chunk +
            term % p.group_in;
  }

  // 2. Tile after tile.
  C sums[kDirectRows][kDirectQuad] = {};
  for (int64_t tile = part; tile < p.patch_tiles; tile += p.parts) {
    const PatchTile t = patch_tile(p, static_cast<uint32_t>(tile), h, w);
    __syncthreads();
    load_patch(p, t, h, w, static_cast<const T*>(p.input), first_group, p.group_in, 0, patch);
    load_grads(p, t, h, w, first_group, grads);
    __syncthreads();
    for (int y = 0, x = slice; works; x += p.block_slices) {
      for (; x >= t.columns; x -= t.columns) ++y;
      if (y >= t.rows) break;
      const T* grad = grads + (y * p.tile_w + x) * grad_pitch + quad * kDirectQuad;
      const T* values = patch + (y * h.step * p.patch_w + x * w.step) * pitch;
      C quad_grads[kDirectQuad];
#pragma unroll
      for (int e = 0; e < kDirectQuad; ++e) quad_grads[e] = to_compute(grad[e]);
#pragma unroll
      for (int r = 0; r < kDirectRows; ++r) {
        const C value = to_compute(values[at[r]]);
#pragma unroll
        for (int e = 0; e < kDirectQuad; ++e) sums[r][e] += value * quad_grads[e];
      }
    }
  }

  // 3. The thread's part of the gradient.
  if (!works || first_group + group >= p.groups) return;
#pragma unroll
  for (int e = 0; e < kDirectQuad; ++e) {
    if (channel + e >= p.group_out) break;
    const int64_t k = (static_cast<int64_t>(part) * p.block_slices + slice) * p.out_channels +
                      (first_group + group) * p.group_out + channel + e;
#pragma unroll
    for (int r = 0; r < kDirectRows; ++r)
      if (row + r < p.kernel_row) static_cast<C*>(p.result)[k * p.kernel_row + row + r] = sums[r][e];
  }
}

}  // namespace fastcnn::cuda
