// Autograd of avg_pool2d and adaptive_avg_pool2d. Both are linear, so the gradient of the gradient is the op itself and
// derivatives of every order exist.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../fallback.h"
#include "../ops.h"
#include "pool2d.h"

namespace fastcnn::autograd {
namespace {

using c10::SymInt;
using c10::SymIntArrayRef;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct AvgPool2dOptions {
  std::vector<SymInt> kernel_size, stride, padding;
  bool ceil_mode, count_include_pad;
  std::optional<SymInt> divisor_override;

  void save(AutogradContext* ctx) const {
    ctx->saved_data["kernel_size"] = SymIntArrayRef(kernel_size);
    ctx->saved_data["stride"] = SymIntArrayRef(stride);
    ctx->saved_data["padding"] = SymIntArrayRef(padding);
    ctx->saved_data["ceil_mode"] = ceil_mode;
    ctx->saved_data["count_include_pad"] = count_include_pad;
    ctx->saved_data["divisor_override"] = divisor_override;
  }
  static AvgPool2dOptions load(AutogradContext* ctx) {
    auto& saved = ctx->saved_data;
    return {saved["kernel_size"].toSymIntVector(), saved["stride"].toSymIntVector(),
            saved["padding"].toSymIntVector(),     saved["ceil_mode"].toBool(),
            saved["count_include_pad"].toBool(),   saved["divisor_override"].toOptional<SymInt>()};
  }
};

Tensor call_forward(const Tensor& input, const AvgPool2dOptions& o) {
  return ops::avg_pool2d(input, o.kernel_size, o.stride, o.padding, o.ceil_mode, o.count_include_pad,
                         o.divisor_override);
}

Tensor call_backward(const Tensor& grad_output, SymIntArrayRef input_size, const AvgPool2dOptions& o,
                     at::MemoryFormat format) {
  return ops::avg_pool2d_backward(grad_output, input_size, o.kernel_size, o.stride, o.padding, o.ceil_mode,
                                  o.count_include_pad, o.divisor_override, format);
}

class AvgPool2dFunction : public torch::autograd::Function<AvgPool2dFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& input, const AvgPool2dOptions& options) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor output = call_forward(input, options);
    save_switches(ctx);
    save_layout(ctx, input);
    options.save(ctx);
    return {output};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const backends::Guard switches(load_switches(ctx));
    if (!grads[0].defined()) return variable_list(2);
    return {call_backward(grads[0], load_size(ctx), AvgPool2dOptions::load(ctx), load_format(ctx)), Tensor()};
  }
};

class AvgPool2dBackwardFunction : public torch::autograd::Function<AvgPool2dBackwardFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const std::vector<SymInt>& input_size,
                               const AvgPool2dOptions& options, at::MemoryFormat format) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor grad_input = call_backward(grad_output, input_size, options, format);
    save_switches(ctx);
    options.save(ctx);
    return {grad_input};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const backends::Guard switches(load_switches(ctx));
    variable_list result(4);
    if (grads[0].defined()) result[0] = call_forward(grads[0], AvgPool2dOptions::load(ctx));
    return result;
  }
};

class AdaptiveAvgPool2dFunction : public torch::autograd::Function<AdaptiveAvgPool2dFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& input, const std::vector<SymInt>& output_size) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor output = ops::adaptive_avg_pool2d(input, output_size);
    save_switches(ctx);
    save_layout(ctx, input);
    return {output};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const backends::Guard switches(load_switches(ctx));
    if (!grads[0].defined()) return variable_list(2);
    return {ops::adaptive_avg_pool2d_backward(grads[0], load_size(ctx), load_format(ctx)), Tensor()};
  }
};

class AdaptiveAvgPool2dBackwardFunction : public torch::autograd::Function<AdaptiveAvgPool2dBackwardFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const std::vector<SymInt>& input_size,
                               at::MemoryFormat format) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor grad_input = ops::adaptive_avg_pool2d_backward(grad_output, input_size, format);
    save_switches(ctx);
    ctx->saved_data["output_size"] = grad_output.sym_sizes().slice(2);
    return {grad_input};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const backends::Guard switches(load_switches(ctx));
    variable_list result(3);
    if (grads[0].defined())
      result[0] = ops::adaptive_avg_pool2d(grads[0], ctx->saved_data["output_size"].toSymIntVector());
    return result;
  }
};

Tensor avg_pool2d_autograd(const Tensor& input, SymIntArrayRef kernel_size, SymIntArrayRef stride,
                           SymIntArrayRef padding, bool ceil_mode, bool count_include_pad,
                           std::optional<SymInt> divisor_override) {
  if (!needs_grad(input)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
  }
  if (has_kernels(input))
    return AvgPool2dFunction::apply(input, AvgPool2dOptions{kernel_size.vec(), stride.vec(), padding.vec(), ceil_mode,
                                                            count_include_pad, std::move(divisor_override)})[0];
  // torch's own op, with its own gradient.
  std::optional<int64_t> divisor;
  if (divisor_override.has_value()) divisor = divisor_override->guard_int(__FILE__, __LINE__);
  return fallback::avg_pool2d(input, C10_AS_INTARRAYREF_SLOW(kernel_size), C10_AS_INTARRAYREF_SLOW(stride),
                              C10_AS_INTARRAYREF_SLOW(padding), ceil_mode, count_include_pad, divisor);
}

Tensor avg_pool2d_backward_autograd(const Tensor& grad_output, SymIntArrayRef input_size, SymIntArrayRef kernel_size,
                                    SymIntArrayRef stride, SymIntArrayRef padding, bool ceil_mode,
                                    bool count_include_pad, std::optional<SymInt> divisor_override,
                                    at::MemoryFormat memory_format) {
  if (!needs_grad(grad_output)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::avg_pool2d_backward(grad_output, input_size, kernel_size, stride, padding, ceil_mode, count_include_pad,
                                    divisor_override, memory_format);
  }
  const AvgPool2dOptions options{kernel_size.vec(), stride.vec(),      padding.vec(),
                                 ceil_mode,         count_include_pad, std::move(divisor_override)};
  return AvgPool2dBackwardFunction::apply(grad_output, input_size.vec(), options, memory_format)[0];
}

Tensor adaptive_avg_pool2d_autograd(const Tensor& input, SymIntArrayRef output_size) {
  if (!needs_grad(input)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::adaptive_avg_pool2d(input, output_size);
  }
  if (has_kernels(input)) return AdaptiveAvgPool2dFunction::apply(input, output_size.vec())[0];
  return fallback::adaptive_avg_pool2d(input, C10_AS_INTARRAYREF_SLOW(output_size));
}

Tensor adaptive_avg_pool2d_backward_autograd(const Tensor& grad_output, SymIntArrayRef input_size,
                                             at::MemoryFormat memory_format) {
  if (!needs_grad(grad_output)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::adaptive_avg_pool2d_backward(grad_output, input_size, memory_format);
  }
  return AdaptiveAvgPool2dBackwardFunction::apply(grad_output, input_size.vec(), memory_format)[0];
}

}  // namespace
}  // namespace fastcnn::autograd

TORCH_LIBRARY_IMPL(fastcnn, Autograd, m) {
  m.impl("avg_pool2d", fastcnn::autograd::avg_pool2d_autograd);
  m.impl("avg_pool2d_backward", fastcnn::autograd::avg_pool2d_backward_autograd);
  m.impl("adaptive_avg_pool2d", fastcnn::autograd::adaptive_avg_pool2d_autograd);
  m.impl("adaptive_avg_pool2d_backward", fastcnn::autograd::adaptive_avg_pool2d_backward_autograd);
}
