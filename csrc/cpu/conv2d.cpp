// conv2d on the CPU: allocates, chooses the algorithm, and states the input's gradient as gathers.
#include "conv2d.h"

#include <torch/library.h>

#include "../checks/checks.h"
#include "../common/switches.h"
#include "../fallback.h"
#include "conv2d_autotune.h"
#include "conv2d_choice.h"
#include "dtypes.h"
#include "memory.h"

namespace fastcnn::cpu {
namespace {

constexpr auto kNhwc = at::MemoryFormat::ChannelsLast;

// One dimension of the input's gradient at the positions congruent to `phase` modulo the stride: the kernel offsets
// that reach them, and how far from position / stride each one's output lies.
struct PhaseTap {
  int64_t kernel, offset;
};
std::vector<PhaseTap> phase_taps(int64_t phase, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  std::vector<PhaseTap> taps;
  for (int64_t k = kernel - 1; k >= 0; --k)
    if ((phase + pad - k * dilation) % stride == 0) taps.push_back({k, (phase + pad - k * dilation) / stride});
  return taps;
}

// The gradient of the input is, for each residue of the position modulo the stride, a convolution of grad_output with
// stride 1 over the kernel's elements that reach it.
template <typename T>
std::vector<GatherConv<T>> grad_input_problems(const Conv2dGeometry& g, const at::Tensor& grad_output,
                                               const at::Tensor& weight, at::Tensor& grad_input) {
  std::vector<GatherConv<T>> problems;
  const int64_t row = g.in_w * g.in_channels;
  for (int64_t ph = 0; ph < std::min(g.stride_h, g.in_h); ++ph)
    for (int64_t pw = 0; pw < std::min(g.stride_w, g.in_w); ++pw) {
      GatherConv<T> p{};
      p.image = image_view<T>(grad_output);
      p.image.depth = g.group_out();
      p.grid = {ceil_div(g.in_h - ph, g.stride_h), ceil_div(g.in_w - pw, g.stride_w), 1, 1, {}};
      for (const PhaseTap& th : phase_taps(ph, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h))
        for (const PhaseTap& tw : phase_taps(pw, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w))
          p.grid.taps.push_back({th.offset, tw.offset, th.kernel * weight.stride(2) + tw.kernel * weight.stride(3)});
      p.depth_stride = weight.stride(0), p.lane_stride = weight.stride(1);
      p.lanes = g.group_in();
      p.out_stride_w = g.stride_w * g.in_channels, p.out_stride_h = g.stride_h * row, p.out_stride_n = g.in_h * row;
      for (int64_t group = 0; group < g.groups; ++group) {
        problems.push_back(p);
        GatherConv<T>& q = problems.back();
        q.image.data += group * g.group_out() * p.image.stride_c;
        q.weight = data_of<T>(weight) + group * g.group_out() * weight.stride(0);
        q.output = mutable_data_of<T>(grad_input) + ph * row + pw * g.in_channels + group * g.group_in();
      }
    }
  return problems;
}

template <typename T>
void run_problems(Conv2dAlgorithm algorithm, const std::vector<GatherConv<T>>& problems) {
  if (const auto size = winograd_size(algorithm)) {
    backends::record_kernel(algorithm_name(algorithm));
    conv2d_winograd(problems, *size);
  } else {
    const bool planar = !problems.empty() && problems[0].image.batch > 0 && conv2d_planar_applies(problems[0]);
    backends::record_kernel(planar ? "conv2d_planar" : "conv2d_direct");
    if (!planar) return conv2d_direct(problems);
    for (const GatherConv<T>& p : problems) conv2d_planar(p);
  }
}

template <typename T>
at::Tensor forward(const Conv2dGeometry& g, Conv2dAlgorithm algorithm, const at::Tensor& input,
                   const at::Tensor& weight, const std::optional<at::Tensor>& bias, Activation activation) {
  at::Tensor output = empty({g.batch, g.out_channels, g.out_h, g.out_w}, input.options(), kNhwc);
  if (output.numel() == 0) return output;
  const at::Tensor dense_bias = bias.has_value() && bias->defined() ? bias->contiguous() : at::Tensor();
  const T* bias_data = dense_bias.defined() ? data_of<T>(dense_bias) : nullptr;
  if (g.depthwise()) {
    backends::record_kernel("conv2d_depthwise");
    const at::Tensor image = input.contiguous(kNhwc), lanes = depthwise_lanes(weight);
    conv2d_depthwise(forward_problems<T>(g, image_view<T>(image), lanes, bias_data, activation,
                                         mutable_data_of<T>(output), g.out_channels));
  } else {
    const at::Tensor image = winograd_size(algorithm) ? input.contiguous(kNhwc) : input;
    run_problems(algorithm, forward_problems<T>(g, image_view<T>(image), weight, bias_data, activation,
                                                mutable_data_of<T>(output), g.out_channels));
  }
  return output;
}

template <typename T>
at::Tensor grad_input(const Conv2dGeometry& g, Conv2dAlgorithm algorithm, const at::Tensor& grad_output,
                      const at::Tensor& weight) {
  at::Tensor result = empty({g.batch, g.in_channels, g.in_h, g.in_w}, grad_output.options(), kNhwc);
  if (result.numel() == 0) return result;
  if (g.depthwise()) {
    backends::record_kernel("conv2d_depthwise");
    Conv2dGeometry layer = g;
    layer.groups = 1;  // one problem, of which the kernel keeps the channels apart
    conv2d_depthwise(grad_input_problems<T>(layer, grad_output, depthwise_lanes(weight), result));
  } else {
    run_problems(algorithm, grad_input_problems<T>(g, grad_output, weight, result));
  }
  return result;
}

// In the type that T is computed in.
template <typename T>
at::Tensor grad_weight(const Conv2dGeometry& g, Conv2dAlgorithm algorithm, const at::Tensor& grad_output,
                       const at::Tensor& input) {
  if (g.depthwise()) {
    backends::record_kernel("conv2d_depthwise_grad_weight");
    at::Tensor lanes = zeros({g.kernel_h, g.kernel_w, g.in_channels}, kComputeDtype<T>);
    if (g.batch > 0) depthwise_grad_weight<T>(g, grad_output, input.contiguous(kNhwc), lanes);
    return lanes.permute({2, 0, 1}).unsqueeze(1);
  }
  at::Tensor result = empty({g.out_channels, g.group_in(), g.kernel_h, g.kernel_w},
                            at::device(at::kCPU).dtype(kComputeDtype<T>), kNhwc);
  if (const auto size = winograd_size(algorithm); size && g.batch > 0) {
    backends::record_kernel(algorithm_name(algorithm));
    conv2d_grad_weight_winograd<T>(g, *size, grad_output, input.contiguous(kNhwc), result);
  } else {
    conv2d_grad_weight_direct<T>(g, grad_output, input, result);
  }
  return result;
}

// The algorithm for a pass that `run` computes: by the rule, or by measuring where that is switched on.
template <typename Run>
Conv2dAlgorithm algorithm_for(Conv2dPass pass, const Conv2dGeometry& g, at::ScalarType dtype, const Run& run) {
  if (!conv2d_autotunes(g, dtype)) return choose_conv2d(pass, g, dtype);
  return conv2d_autotuned(pass, g, dtype, [&](Conv2dAlgorithm algorithm) { run(algorithm); });
}

at::Tensor conv2d_cpu(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                      at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                      std::optional<std::string_view> activation) {
  const Activation applied = checks::relu_activation("conv2d", activation) ? Activation::relu : Activation::none;
  const Conv2dGeometry g = checks::conv2d(input, weight, bias, stride, padding, dilation, groups);
  const auto dtype = input.scalar_type();
  if (!is_covered(dtype)) return fallback::conv2d(input, weight, bias, stride, padding, dilation, groups, activation);
  const auto format = input.suggest_memory_format() == kNhwc ? kNhwc : weight.suggest_memory_format();
  const auto compute = [&](Conv2dAlgorithm algorithm) -> at::Tensor {
    if (algorithm == Conv2dAlgorithm::aten)
      return fallback::conv2d(input, weight, bias, stride, padding, dilation, groups, activation);
    return with_element(dtype, [&]<typename T>() { return forward<T>(g, algorithm, input, weight, bias, applied); });
  };
  return compute(algorithm_for(Conv2dPass::forward, g, dtype, compute)).contiguous(format);
}

template <typename T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const Conv2dGeometry& g, at::ScalarType dtype,
                                                        const at::Tensor& grad_output, const at::Tensor& input,
                                                        const at::Tensor& weight, const at::Tensor& activated,
                                                        std::array<bool, 3> mask) {
  const auto [grad, sums] = conv2d_grad_output<T>(grad_output, activated, mask[2]);
  const auto by_aten = [&, grad = grad](std::array<bool, 3> wanted) {
    return fallback::conv2d_backward(grad, input, weight, {g.stride_h, g.stride_w}, {g.pad_h, g.pad_w},
                                     {g.dilation_h, g.dilation_w}, g.groups, wanted, std::nullopt);
  };
  const auto by_input = [&, grad = grad](Conv2dAlgorithm algorithm) {
    return algorithm == Conv2dAlgorithm::aten ? std::get<0>(by_aten({true, false, false}))
                                              : grad_input<T>(g, algorithm, grad, weight);
  };
  const auto by_weight = [&, grad = grad](Conv2dAlgorithm algorithm) {
    return algorithm == Conv2dAlgorithm::aten ? std::get<1>(by_aten({false, true, false}))
                                              : grad_weight<T>(g, algorithm, grad, input);
  };
  return {mask[0] ? by_input(algorithm_for(Conv2dPass::grad_input, g, dtype, by_input)) : at::Tensor(),
          mask[1] ? by_weight(algorithm_for(Conv2dPass::grad_weight, g, dtype, by_weight)) : at::Tensor(), sums};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> conv2d_backward_cpu(const at::Tensor& grad_output,
                                                                   const at::Tensor& input, const at::Tensor& weight,
                                                                   at::IntArrayRef stride, at::IntArrayRef padding,
                                                                   at::IntArrayRef dilation, int64_t groups,
                                                                   std::array<bool, 3> output_mask,
                                                                   const std::optional<at::Tensor>& activated) {
  const Conv2dGeometry g =
      checks::conv2d_backward(grad_output, input, weight, stride, padding, dilation, groups, activated);
  const auto dtype = input.scalar_type();
  if (!is_covered(dtype))
    return fallback::conv2d_backward(grad_output, input, weight, stride, padding, dilation, groups, output_mask,
                                     activated);
  auto [by_input, by_weight, by_bias] = with_element(dtype, [&]<typename T>() {
    return backward<T>(g, dtype, grad_output, input, weight, activated.value_or(at::Tensor()), output_mask);
  });
  // The gradients take the formats that torch's take: channels_last where input or weight is.
  const bool nhwc = input.suggest_memory_format() == kNhwc || weight.suggest_memory_format() == kNhwc;
  const auto format = nhwc ? kNhwc : at::MemoryFormat::Contiguous;
  const auto none = [&] { return empty({0}, input.options()); };
  return {output_mask[0] ? by_input.contiguous(format) : none(),
          output_mask[1] ? by_weight.to(dtype).contiguous(format) : none(),
          output_mask[2] ? by_bias.to(dtype) : none()};
}

}  // namespace
}  // namespace fastcnn::cpu

TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("conv2d", fastcnn::cpu::conv2d_cpu);
  m.impl("_conv2d_traced", fastcnn::backends::GivingSwitches<fastcnn::cpu::conv2d_cpu>::call);
  m.impl("conv2d_backward", fastcnn::backends::TakingSwitches<fastcnn::cpu::conv2d_backward_cpu>::call);
}
