// Autograd and autocast of conv2d. The backward of conv2d_backward is made of conv2d and conv2d_backward again, so
// derivatives of every order exist.
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../common/backends.h"
#include "../common/bit_mask.h"
#include "../ops.h"
#include "saved.h"

namespace fastcnn::autograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Conv2dOptions {
  std::vector<c10::SymInt> stride, padding, dilation;
  c10::SymInt groups;

  void save(AutogradContext* ctx) const {
    ctx->saved_data["stride"] = c10::SymIntArrayRef(stride);
    ctx->saved_data["padding"] = c10::SymIntArrayRef(padding);
    ctx->saved_data["dilation"] = c10::SymIntArrayRef(dilation);
    ctx->saved_data["groups"] = groups;
  }
  static Conv2dOptions load(AutogradContext* ctx) {
    auto& saved = ctx->saved_data;
    return {saved["stride"].toSymIntVector(), saved["padding"].toSymIntVector(), saved["dilation"].toSymIntVector(),
            saved["groups"].toSymInt()};
  }
};

Tensor call_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Conv2dOptions& o,
                   std::optional<std::string_view> activation = std::nullopt) {
  return ops::conv2d(input, weight, bias, o.stride, o.padding, o.dilation, o.groups, activation);
}

std::tuple<Tensor, Tensor, Tensor> call_conv2d_backward(const Tensor& grad_output, const Tensor& input,
                                                        const Tensor& weight, const Conv2dOptions& o,
                                                        std::array<bool, 3> mask,
                                                        const OptionalTensor& activated = std::nullopt,
                                                        const OptionalTensor& switches = std::nullopt) {
  return ops::conv2d_backward(grad_output, input, weight, o.stride, o.padding, o.dilation, o.groups, mask, activated,
                              switches);
}

class Conv2dFunction : public torch::autograd::Function<Conv2dFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight,
                               const OptionalTensor& bias, const Conv2dOptions& options,
                               std::optional<std::string_view> activation) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor output, switches;
    if (is_traced(input)) {
      std::tie(output, switches) = ops::_conv2d_traced(input, weight, bias, options.stride, options.padding,
                                                       options.dilation, options.groups, activation);
    } else {
      output = call_conv2d(input, weight, bias, options, activation);
    }
    save_switches(ctx);
    options.save(ctx);
    ctx->saved_data["has_bias"] = bias.has_value() && bias->defined();
    // One bit an element of the output: whoever reads the output next may not have to keep it.
    ctx->save_for_backward({input, weight, activation.has_value() ? ops::_relu_mask(output) : Tensor(), switches});
    return {output};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const backends::Guard switches(load_switches(ctx));
    const auto saved = ctx->get_saved_variables();
    const Tensor& grad_output = grads[0];
    if (!grad_output.defined()) return variable_list(5);
    const OptionalTensor activated = optional(saved[2]);
    const std::array<bool, 3> mask{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                   ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2)};
    auto [grad_input, grad_weight, grad_bias] = call_conv2d_backward(
        grad_output, saved[0], saved[1], Conv2dOptions::load(ctx), mask, activated, optional(saved[3]));
    return {mask[0] ? grad_input : Tensor(), mask[1] ? grad_weight : Tensor(), mask[2] ? grad_bias : Tensor(), Tensor(),
            Tensor()};
  }
};

// Gradients of (grad_input, grad_weight, grad_bias) by (grad_output, input, weight): convolution is linear in each, and
// a fused ReLU multiplies grad_output by a mask on the way in and out.
class Conv2dBackwardFunction : public torch::autograd::Function<Conv2dBackwardFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& input,
                               const Tensor& weight, const Conv2dOptions& options, std::array<bool, 3> output_mask,
                               const OptionalTensor& activated, const OptionalTensor& given_switches) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [grad_input, grad_weight, grad_bias] =
        call_conv2d_backward(grad_output, input, weight, options, output_mask, activated, given_switches);
    save_switches(ctx);
    options.save(ctx);
    ctx->saved_data["mask"] = std::vector<bool>(output_mask.begin(), output_mask.end());
    ctx->save_for_backward({grad_output, input, weight, activated.value_or(Tensor())});
    return {grad_input, grad_weight, grad_bias};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const backends::Guard switches(load_switches(ctx));
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[1], &weight = saved[2], &activated = saved[3];
    const auto masked = [&](const Tensor& t) { return activated.defined() ? bit_mask::pass(activated, t) : t; };
    const Tensor& grad_output = saved[0];
    const Conv2dOptions options = Conv2dOptions::load(ctx);
    const auto mask = ctx->saved_data["mask"].toBoolList();
    const Tensor by_input = mask[0] ? grads[0] : Tensor();
    const Tensor by_weight = mask[1] ? grads[1] : Tensor();
    const Tensor by_bias = mask[2] ? grads[2] : Tensor();

    Tensor grad_grad_output, grad_input, grad_weight;
    if (ctx->needs_input_grad(0)) {
      if (by_input.defined()) grad_grad_output = call_conv2d(by_input, weight, std::nullopt, options);
      if (by_weight.defined()) accumulate(grad_grad_output, call_conv2d(input, by_weight, std::nullopt, options));
      if (by_bias.defined())
        accumulate(grad_grad_output, by_bias.reshape({1, -1, 1, 1}).expand_symint(grad_output.sym_sizes()));
      if (grad_grad_output.defined()) grad_grad_output = masked(grad_grad_output);
    }
    if (ctx->needs_input_grad(1) && by_weight.defined())
      grad_input =
          std::get<0>(call_conv2d_backward(masked(grad_output), input, by_weight, options, {true, false, false}));
    if (ctx->needs_input_grad(2) && by_input.defined())
      grad_weight =
          std::get<1>(call_conv2d_backward(masked(grad_output), by_input, weight, options, {false, true, false}));
    return {grad_grad_output, grad_input, grad_weight, Tensor(), Tensor(), Tensor(), Tensor()};
  }

 private:
  static void accumulate(Tensor& sum, const Tensor& term) { sum = sum.defined() ? sum + term : term; }
};

Tensor conv2d_autograd(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                       c10::SymInt groups, std::optional<std::string_view> activation) {
  if (!needs_grad(input, weight, bias)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::conv2d(input, weight, bias, stride, padding, dilation, groups, activation);
  }
  return Conv2dFunction::apply(input, weight, bias,
                               Conv2dOptions{stride.vec(), padding.vec(), dilation.vec(), std::move(groups)},
                               activation)[0];
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward_autograd(const Tensor& grad_output, const Tensor& input,
                                                            const Tensor& weight, c10::SymIntArrayRef stride,
                                                            c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                                            c10::SymInt groups, std::array<bool, 3> output_mask,
                                                            const OptionalTensor& activated,
                                                            const OptionalTensor& switches) {
  if (!needs_grad(grad_output, input, weight)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::conv2d_backward(grad_output, input, weight, stride, padding, dilation, groups, output_mask, activated,
                                switches);
  }
  const auto grads = Conv2dBackwardFunction::apply(
      grad_output, input, weight, Conv2dOptions{stride.vec(), padding.vec(), dilation.vec(), std::move(groups)},
      output_mask, activated, switches);
  return {grads[0], grads[1], grads[2]};
}

// As torch's conv2d: in the region's lower precision, weights cast once a region.
template <c10::DispatchKey Key, c10::DeviceType Device>
Tensor conv2d_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                       c10::SymInt groups, std::optional<std::string_view> activation) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(Key);
  const auto dtype = at::autocast::get_autocast_dtype(Device);
  return ops::conv2d(at::autocast::cached_cast(dtype, input, Device), at::autocast::cached_cast(dtype, weight, Device),
                     at::autocast::cached_cast(dtype, bias, Device), stride, padding, dilation, std::move(groups),
                     activation);
}

}  // namespace
}  // namespace fastcnn::autograd

TORCH_LIBRARY_IMPL(fastcnn, Autograd, m) {
  m.impl("conv2d", fastcnn::autograd::conv2d_autograd);
  m.impl("conv2d_backward", fastcnn::autograd::conv2d_backward_autograd);
}

TORCH_LIBRARY_IMPL(fastcnn, AutocastCPU, m) {
  m.impl("conv2d", fastcnn::autograd::conv2d_autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(fastcnn, AutocastCUDA, m) {
  m.impl("conv2d", fastcnn::autograd::conv2d_autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>);
}
