// From conv2d's arguments to the problem that its kernels see. For launchers only.
#pragma once
#include <algorithm>
#include <numeric>

#include "conv2d_window.cuh"
#include "launch.cuh"

namespace fastcnn::cuda {

// Positions of the input and of the output that one launch may have; the emulated tests lower it. Larger batches take
// several launches.
#ifndef FASTCNN_MAX_POSITIONS
#define FASTCNN_MAX_POSITIONS ((int64_t{1} << 31) - (int64_t{1} << 20))
#endif
constexpr int64_t kMaxPositions = FASTCNN_MAX_POSITIONS;
// Blocks that fill a large GPU a few times over, and bytes that parts of a result may take.
constexpr int64_t kPartBlocks = 512, kMaxPartBytes = int64_t{64} << 20;

inline Divisor make_divisor(int64_t divisor) {
  uint32_t shift = 0;
  while ((int64_t{1} << shift) < divisor) ++shift;
  const uint64_t magic = ((uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor)) / divisor + 1;
  return {static_cast<uint32_t>(divisor), static_cast<uint32_t>(magic), shift};
}

// Whether runs of `channels` of all tensors are 16-byte vectors.
inline bool has_vectors(const Conv2dArgs& args, int64_t channels) {
  return is_aligned(channels * element_bytes(args.dtype)) && is_aligned(args.input) && is_aligned(args.weight) &&
         is_aligned(args.grad_output) && is_aligned(args.result);
}

inline Conv2dProblem make_problem(const Conv2dArgs& args) {
  const Conv2dGeometry& g = args.geometry;
  const auto small = [](int64_t n) { return static_cast<int>(n); };
  Conv2dProblem p{};
  p.pass = args.pass;
  p.input = args.input, p.weight = args.weight, p.bias = args.bias, p.grad_output = args.grad_output;
  p.result = args.result;
  p.h = {small(g.in_h), small(g.out_h), small(g.kernel_h), small(g.stride_h), small(g.pad_h), small(g.dilation_h)};
  p.w = {small(g.in_w), small(g.out_w), small(g.kernel_w), small(g.stride_w), small(g.pad_w), small(g.dilation_w)};
  p.batch = small(g.batch), p.in_channels = small(g.in_channels), p.out_channels = small(g.out_channels);
  p.groups = small(g.groups), p.group_in = small(g.group_in()), p.group_out = small(g.group_out());
  p.kernel_row = small(g.kernel_h * g.kernel_w * g.group_in());
  p.relu = args.relu, p.part_size = result_size(args);
  p.in_vectors = has_vectors(args, g.group_in()), p.out_vectors = has_vectors(args, g.group_out());
  p.phases_w = 1;
  if (args.pass == Conv2dPass::grad_input) p.phases_w = small(std::min(g.stride_w, g.in_w));
  p.out_w = make_divisor(g.out_w), p.out_h = make_divisor(g.out_h);
  return p;
}

// The phases of a pass, and the positions of an image and the taps in the largest of them.
struct PhaseSizes {
  int64_t phases, rows, columns, taps;
};
inline PhaseSizes phase_sizes(const Conv2dArgs& args) {
  const Conv2dGeometry& g = args.geometry;
  if (args.pass != Conv2dPass::grad_input) return {1, g.out_h, g.out_w, g.kernel_h * g.kernel_w};
  const int64_t taps_h = ceil_div(g.kernel_h, g.stride_h / std::gcd(g.stride_h, g.dilation_h));
  const int64_t taps_w = ceil_div(g.kernel_w, g.stride_w / std::gcd(g.stride_w, g.dilation_w));
  return {std::min(g.stride_h, g.in_h) * std::min(g.stride_w, g.in_w), ceil_div(g.in_h, g.stride_h),
          ceil_div(g.in_w, g.stride_w), taps_h * taps_w};
}

inline int64_t compute_bytes(const Conv2dArgs& args) { return args.dtype == Dtype::f64 ? 8 : 4; }

// How many of the `wanted` parts a result is cut into: at most `most`, and each of `slices` times the result's size, so
// that they do not grow large.
inline int64_t count_parts(const Conv2dArgs& args, int64_t wanted, int64_t most, int64_t slices = 1) {
  const int64_t room = kMaxPartBytes / (slices * result_size(args) * compute_bytes(args));
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, std::min(most, room)));
}

// Images that one launch takes.
inline int64_t launch_images(const Conv2dGeometry& g) {
  return std::max<int64_t>(1, kMaxPositions / std::max(g.in_h * g.in_w, g.out_h * g.out_w));
}

// Calls run(args) for runs of images that kMaxPositions allows, first to last.
template <typename Run>
void for_batches(const Conv2dArgs& args, const Run& run) {
  const Conv2dGeometry& g = args.geometry;
  const int64_t in = g.in_h * g.in_w, out = g.out_h * g.out_w, bytes = element_bytes(args.dtype);
  const int64_t images = launch_images(g);
  const auto move = [](const void* data, int64_t by) {
    return data == nullptr ? nullptr : static_cast<const char*>(data) + by;
  };
  for (int64_t first = 0; first < g.batch; first += images) {
    const int64_t in_bytes = first * in * g.in_channels * bytes, out_bytes = first * out * g.out_channels * bytes;
    Conv2dArgs batch = args;
    batch.geometry.batch = std::min(images, g.batch - first);
    batch.input = move(args.input, in_bytes), batch.grad_output = move(args.grad_output, out_bytes);
    if (args.pass != Conv2dPass::grad_weight) {
      const int64_t result_bytes = args.pass == Conv2dPass::forward ? out_bytes : in_bytes;
      batch.result = static_cast<char*>(args.result) + result_bytes;
    }
    run(batch);
  }
}

// A problem with its blocks, and the parts that it leaves, or none where it writes the result.
struct Conv2dPlan {
  Conv2dProblem problem;
  int64_t blocks, parts;
};

// Makes a plan for each batch and launches it: start(plan) -> cudaError_t.
template <typename Plan, typename Start>
cudaError_t launch_plans(const Conv2dArgs& args, const Plan& plan, const Start& start) {
  const int64_t part_bytes = args.pass == Conv2dPass::grad_weight ? result_size(args) * compute_bytes(args) : 0;
  char* result = static_cast<char*>(args.result);
  cudaError_t error = cudaSuccess;
  for_batches(args, [&](Conv2dArgs batch) {
    if (args.pass == Conv2dPass::grad_weight) batch.result = result;
    const Conv2dPlan made = plan(batch);
    result += made.parts * part_bytes;
    if (made.blocks > INT32_MAX) {
      error = cudaErrorInvalidConfiguration;
    } else if (error == cudaSuccess) {
      error = start(made);
    }
  });
  return error;
}

template <typename Plan>
int64_t count_plans_parts(const Conv2dArgs& args, const Plan& plan) {
  int64_t parts = 0;
  for_batches(args, [&](const Conv2dArgs& batch) { parts += plan(batch).parts; });
  return parts;
}

}  // namespace fastcnn::cuda
