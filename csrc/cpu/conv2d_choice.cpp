#include "conv2d_choice.h"

#include <algorithm>
#include <limits>

#include "capability.h"
#include "conv2d.h"
#include "conv2d_costs.h"

namespace fastcnn::cpu {
namespace {

constexpr double kColdWeights = 8e6;  // elements: glibc maps buffers of 32 MB and more anew for each call
constexpr double kColdCost = 6;
constexpr int64_t kInvariantBatch = 8;  // the batch that stands for all where the choice may not depend on it
// Torch's own convolution has to be this much faster by the estimate, which is not that exact.
constexpr double kAtenMargin = 0.95;

constexpr Conv2dAlgorithm kChoices[] = {Conv2dAlgorithm::direct, Conv2dAlgorithm::winograd_f4x3,
                                        Conv2dAlgorithm::winograd_f2x3, Conv2dAlgorithm::winograd_f2x5,
                                        Conv2dAlgorithm::aten};

// How the types as wide as half a float32 compare with it: Winograd's algorithm is the same. Where the direct kernels
// take products in pairs, so does torch, which pays more for its weights' layout then; elsewhere its convolutions are
// up to a hundred times slower. From 77 passes of the networks' layers (EPYC 9004, 1 thread).
constexpr double kPairedAten = 0.5, kPairedAtenWeights = 2.5, kPairedGradWeight = 0.65;
// Layers of fewer input channels have their weight gradient computed without pairs.
constexpr int64_t kPairedChannels = 8;
// A depthwise layer's outputs from which on torch's own kernel, which takes longer to start, is faster.
constexpr int64_t kDepthwiseAtenOutputs = 300'000;

// What is left of the weights' cost where they are only read, which in a whole network is from beyond the second-level
// cache. Against 0.3, which suits a layer that is run again and again, batch 1 takes 0.85 of the time (resnet50), 0.94
// (ResNet-18) to 1.02 (the others), and 0.90 to 1.11 with all of it (Xeon with AMX).
constexpr double kPackedWeights = 0.7;

bool takes_pairs(at::ScalarType dtype) { return dtype == at::kBFloat16 && kernels().bf16.conv2d_pair == 2; }

// The share of a direct kernel's products that are left to do in pairs.
double paired_products(Conv2dPass pass, const Conv2dGeometry& g) {
  if (pass == Conv2dPass::grad_weight) return g.group_in() < kPairedChannels ? 1 : kPairedGradWeight;
  const int64_t depth = pass == Conv2dPass::forward ? g.group_in() : g.group_out();
  return static_cast<double>(ceil_div(depth, 2)) / static_cast<double>(depth);
}

// Of the pairs of an output position and a tap, the share whose input lies inside the image: the direct kernels leave
// out the others where that is less work, on small maps.
double inside_share(const Conv2dGeometry& g) {
  const auto share = [](int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, int64_t in) {
    int64_t pairs = 0;
    for (int64_t k = 0; k < kernel; ++k) {
      const OutputRange inside = outputs_inside(out, stride, k * dilation - pad, in);
      pairs += inside.end - inside.begin;
    }
    return static_cast<double>(pairs) / static_cast<double>(std::max<int64_t>(1, out * kernel));
  };
  return share(g.out_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h, g.in_h) *
         share(g.out_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w, g.in_w);
}

double estimate(Conv2dPass pass, Conv2dAlgorithm algorithm, const Conv2dGeometry& g, at::ScalarType dtype,
                bool packed) {
  Conv2dCounts counts = conv2d_counts(pass, algorithm, g);
  // The first count stands for an op's call, and layers with packed weights are made ready before it: LeNet's second
  // one takes 4.2 us by the direct kernel and 8 by Winograd's (Xeon with AMX), as the other counts say.
  if (packed) counts.front() = 0, counts.back() *= kPackedWeights;
  const auto& costs = kConv2dCosts[kernels().f32.width >= 16][static_cast<int>(pass)][static_cast<int>(algorithm)];
  double time = 0;
  for (size_t i = 0; i < counts.size(); ++i) time += counts[i] * costs[i];
  if (takes_pairs(dtype)) {
    if (algorithm == Conv2dAlgorithm::aten)
      time += (kPairedAten - 1) * counts[1] * costs[1] + (kPairedAtenWeights - 1) * counts[4] * costs[4];
    if (algorithm == Conv2dAlgorithm::direct) time -= (1 - paired_products(pass, g)) * counts[1] * costs[1];
  }
  return time;
}

}  // namespace

std::optional<WinogradSize> winograd_size(Conv2dAlgorithm algorithm) {
  switch (algorithm) {
    case Conv2dAlgorithm::winograd_f4x3:
      return kWinograd4x3;
    case Conv2dAlgorithm::winograd_f2x3:
      return kWinograd2x3;
    case Conv2dAlgorithm::winograd_f2x5:
      return kWinograd2x5;
    default:
      return std::nullopt;
  }
}

bool conv2d_applies(Conv2dPass pass, Conv2dAlgorithm algorithm, const Conv2dGeometry& g) {
  // Torch 2.13 writes outside its memory in the weight gradient of a 1x1 layer of stride 2 and 3 channels_last
  // channels.
  if (algorithm == Conv2dAlgorithm::aten && pass == Conv2dPass::grad_weight && g.kernel_h == 1 && g.kernel_w == 1 &&
      (g.stride_h > 1 || g.stride_w > 1))
    return false;
  const auto size = winograd_size(algorithm);
  if (!size) return true;
  return g.kernel_h == size->kernel && g.kernel_w == size->kernel && g.stride_h == 1 && g.stride_w == 1 &&
         g.dilation_h == 1 && g.dilation_w == 1 && !g.depthwise();
}

Conv2dCounts conv2d_counts(Conv2dPass pass, Conv2dAlgorithm algorithm, const Conv2dGeometry& g) {
  constexpr double kMillion = 1e-6;
  const bool by_input = pass == Conv2dPass::grad_input;
  const double groups = static_cast<double>(g.groups), images = static_cast<double>(g.batch);
  // Register lanes are padded: output channels, or input channels where those are the lanes.
  const int64_t width = kernels().f32.width;
  const auto padded = [&](int64_t n) { return static_cast<double>(ceil_div(n, width) * width); };
  const double lanes = padded(pass == Conv2dPass::forward ? g.group_out() : g.group_in());
  const int64_t reduced = pass == Conv2dPass::forward ? g.group_in() : g.group_out();
  const double depth = static_cast<double>(reduced);
  if (const auto size = winograd_size(algorithm)) {
    const int64_t rows = by_input ? g.in_h : g.out_h, cols = by_input ? g.in_w : g.out_w;
    const double tiles =
        images * static_cast<double>(ceil_div(rows, size->outputs()) * ceil_div(cols, size->outputs()));
    const double planes = groups * static_cast<double>(size->planes());
    return {groups, kMillion * planes * tiles * depth * lanes, kMillion * planes * tiles * padded(reduced),
            kMillion * planes * tiles * lanes, kMillion * planes * depth * lanes};
  }
  const double taps = static_cast<double>(g.kernel_h * g.kernel_w);
  const double input = groups * images * static_cast<double>(g.in_h * g.in_w * g.group_in());
  const double output = groups * images * static_cast<double>(g.out_h * g.out_w * g.group_out());
  double weights = taps * depth * lanes;
  // The lanes of a direct weight gradient are a kernel row's input channels, or else output channels.
  if (pass == Conv2dPass::grad_weight)
    weights = std::min(depth * static_cast<double>(g.kernel_h) * padded(g.kernel_w * g.group_in()),
                       padded(g.group_out()) * taps * static_cast<double>(g.group_in()));
  const bool ours = algorithm != Conv2dAlgorithm::aten;
  // Or else positions.
  if (pass == Conv2dPass::grad_weight && ours && planar_grad_weight_cost<float>(g))
    weights = std::min(
        weights, taps * depth * static_cast<double>(g.group_in()) * padded(g.out_w) / static_cast<double>(g.out_w));
  const double products =
      groups * images * static_cast<double>(g.out_h * g.out_w) * weights * (ours ? inside_share(g) : 1);
  // A strided layer's input gradient is a problem of its own for each residue of the position modulo the stride.
  const double problems = ours ? groups * static_cast<double>(by_input ? g.stride_h * g.stride_w : 1) : 1;
  // A large packed copy comes in cold pages each time.
  const double cold = ours && pass != Conv2dPass::grad_weight && weights > kColdWeights ? kColdCost : 1;
  return {problems, kMillion * products, kMillion * input, kMillion * output, kMillion * groups * weights * cold};
}

std::vector<Conv2dAlgorithm> conv2d_candidates(Conv2dPass pass, const Conv2dGeometry& g, at::ScalarType dtype) {
  const backends::Switches& switches = backends::current();
  std::vector<Conv2dAlgorithm> candidates;
  for (const Conv2dAlgorithm algorithm : kChoices) {
    if (!conv2d_applies(pass, algorithm, g) || (winograd_size(algorithm) && !switches.winograd)) continue;
    if (algorithm == Conv2dAlgorithm::aten && (!switches.fallback || switches.batch_invariant)) continue;
    if (algorithm == Conv2dAlgorithm::aten && dtype != at::kFloat && !takes_pairs(dtype)) continue;
    candidates.push_back(algorithm);
  }
  return candidates;
}

Conv2dAlgorithm choose_conv2d(Conv2dPass pass, const Conv2dGeometry& g, at::ScalarType dtype, bool packed) {
  const backends::Switches& switches = backends::current();
  if (switches.conv2d_algorithm != Conv2dAlgorithm::automatic)
    return conv2d_applies(pass, switches.conv2d_algorithm, g) ? switches.conv2d_algorithm : Conv2dAlgorithm::direct;
  if (dtype == at::kDouble) return Conv2dAlgorithm::direct;
  if (g.depthwise()) {
    const bool large = g.batch * g.out_channels * g.out_h * g.out_w >= kDepthwiseAtenOutputs;
    const bool aten =
        pass == Conv2dPass::forward && large && conv2d_candidates(pass, g, dtype).back() == Conv2dAlgorithm::aten;
    return aten ? Conv2dAlgorithm::aten : Conv2dAlgorithm::direct;
  }
  Conv2dGeometry layer = g;
  if (switches.batch_invariant) layer.batch = kInvariantBatch;
  Conv2dAlgorithm best = Conv2dAlgorithm::direct;
  double least = std::numeric_limits<double>::max();
  for (const Conv2dAlgorithm algorithm : conv2d_candidates(pass, g, dtype)) {
    const double time =
        estimate(pass, algorithm, layer, dtype, packed) / (algorithm == Conv2dAlgorithm::aten ? kAtenMargin : 1);
    if (time < least) least = time, best = algorithm;
  }
  return best;
}

}  // namespace fastcnn::cpu
