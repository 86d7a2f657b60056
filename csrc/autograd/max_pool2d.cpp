// Autograd of max_pool2d. Where a gradient is wanted, the op that also gives offsets runs; max_pool2d_backward and
// _max_pool2d_gather are linear and each other's transposes, so derivatives of every order exist.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../common/geometry.h"
#include "../fallback.h"
#include "../ops.h"
#include "pool2d.h"

namespace fastcnn::autograd {
namespace {

using c10::SymIntArrayRef;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct MaxPool2dOptions {
  std::vector<c10::SymInt> kernel_size, stride, padding, dilation;
  bool ceil_mode;

  void save(AutogradContext* ctx) const {
    ctx->saved_data["kernel_size"] = SymIntArrayRef(kernel_size);
    ctx->saved_data["stride"] = SymIntArrayRef(stride);
    ctx->saved_data["padding"] = SymIntArrayRef(padding);
    ctx->saved_data["dilation"] = SymIntArrayRef(dilation);
    ctx->saved_data["ceil_mode"] = ceil_mode;
  }
  static MaxPool2dOptions load(AutogradContext* ctx) {
    auto& saved = ctx->saved_data;
    return {saved["kernel_size"].toSymIntVector(), saved["stride"].toSymIntVector(), saved["padding"].toSymIntVector(),
            saved["dilation"].toSymIntVector(), saved["ceil_mode"].toBool()};
  }
};

Tensor call_backward(const Tensor& grad_output, const Tensor& offsets, SymIntArrayRef input_size,
                     const MaxPool2dOptions& o, at::MemoryFormat format) {
  return ops::max_pool2d_backward(grad_output, offsets, input_size, o.kernel_size, o.stride, o.padding, o.dilation,
                                  o.ceil_mode, format);
}

Tensor call_gather(const Tensor& values, const Tensor& offsets, const MaxPool2dOptions& o) {
  return ops::_max_pool2d_gather(values, offsets, o.kernel_size, o.stride, o.padding, o.dilation, o.ceil_mode);
}

// Shared by the pooling of `input` and by the gather of `values`: both have max_pool2d_backward as their gradient.
variable_list backward_through_offsets(AutogradContext* ctx, const variable_list& grads, size_t arguments) {
  const backends::Guard switches(load_switches(ctx));
  variable_list result(arguments);
  if (grads[0].defined())
    result[0] = call_backward(grads[0], ctx->get_saved_variables()[0], load_size(ctx), MaxPool2dOptions::load(ctx),
                              load_format(ctx));
  return result;
}

class MaxPool2dTrainFunction : public torch::autograd::Function<MaxPool2dTrainFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& input, const MaxPool2dOptions& o) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [output, offsets] = ops::_max_pool2d_train(input, o.kernel_size, o.stride, o.padding, o.dilation, o.ceil_mode);
    save_switches(ctx);
    save_layout(ctx, input);
    o.save(ctx);
    ctx->save_for_backward({offsets});
    ctx->mark_non_differentiable({offsets});
    return {output, offsets};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return backward_through_offsets(ctx, grads, 2);
  }
};

class MaxPool2dGatherFunction : public torch::autograd::Function<MaxPool2dGatherFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& values, const Tensor& offsets,
                               const MaxPool2dOptions& options) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor output = call_gather(values, offsets, options);
    save_switches(ctx);
    save_layout(ctx, values);
    options.save(ctx);
    ctx->save_for_backward({offsets});
    return {output};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return backward_through_offsets(ctx, grads, 3);
  }
};

class MaxPool2dBackwardFunction : public torch::autograd::Function<MaxPool2dBackwardFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& offsets,
                               const std::vector<c10::SymInt>& input_size, const MaxPool2dOptions& options,
                               at::MemoryFormat format) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor grad_input = call_backward(grad_output, offsets, input_size, options, format);
    save_switches(ctx);
    options.save(ctx);
    ctx->save_for_backward({offsets});
    return {grad_input};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const backends::Guard switches(load_switches(ctx));
    variable_list result(5);
    if (grads[0].defined())
      result[0] = call_gather(grads[0], ctx->get_saved_variables()[0], MaxPool2dOptions::load(ctx));
    return result;
  }
};

std::tuple<Tensor, Tensor> max_pool2d_train_autograd(const Tensor& input, SymIntArrayRef kernel_size,
                                                     SymIntArrayRef stride, SymIntArrayRef padding,
                                                     SymIntArrayRef dilation, bool ceil_mode) {
  if (!needs_grad(input)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::_max_pool2d_train(input, kernel_size, stride, padding, dilation, ceil_mode);
  }
  const auto results = MaxPool2dTrainFunction::apply(
      input, MaxPool2dOptions{kernel_size.vec(), stride.vec(), padding.vec(), dilation.vec(), ceil_mode});
  return {results[0], results[1]};
}

// Where not, torch's own op runs and has its own gradient.
bool offsets_cover(const Tensor& input, SymIntArrayRef kernel_size) {
  if (kernel_size.size() != 2) return true;  // refused below
  return has_kernels(input) && kernel_size[0] * kernel_size[1] <= kMaxPool2dTaps;
}

Tensor max_pool2d_autograd(const Tensor& input, SymIntArrayRef kernel_size, SymIntArrayRef stride,
                           SymIntArrayRef padding, SymIntArrayRef dilation, bool ceil_mode) {
  if (!needs_grad(input)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode);
  }
  if (!offsets_cover(input, kernel_size))
    return fallback::max_pool2d(input, C10_AS_INTARRAYREF_SLOW(kernel_size), C10_AS_INTARRAYREF_SLOW(stride),
                                C10_AS_INTARRAYREF_SLOW(padding), C10_AS_INTARRAYREF_SLOW(dilation), ceil_mode);
  return std::get<0>(max_pool2d_train_autograd(input, kernel_size, stride, padding, dilation, ceil_mode));
}

std::tuple<Tensor, Tensor> max_pool2d_with_indices_autograd(const Tensor& input, SymIntArrayRef kernel_size,
                                                            SymIntArrayRef stride, SymIntArrayRef padding,
                                                            SymIntArrayRef dilation, bool ceil_mode) {
  if (!needs_grad(input)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode);
  }
  if (!offsets_cover(input, kernel_size))
    return fallback::max_pool2d_with_indices(input, C10_AS_INTARRAYREF_SLOW(kernel_size),
                                             C10_AS_INTARRAYREF_SLOW(stride), C10_AS_INTARRAYREF_SLOW(padding),
                                             C10_AS_INTARRAYREF_SLOW(dilation), ceil_mode);
  const auto [output, offsets] = max_pool2d_train_autograd(input, kernel_size, stride, padding, dilation, ceil_mode);
  return {output, ops::_max_pool2d_indices(offsets, input.sym_sizes(), kernel_size, stride, padding, dilation,
                                           ceil_mode, input.suggest_memory_format())};
}

Tensor max_pool2d_backward_autograd(const Tensor& grad_output, const Tensor& offsets, SymIntArrayRef input_size,
                                    SymIntArrayRef kernel_size, SymIntArrayRef stride, SymIntArrayRef padding,
                                    SymIntArrayRef dilation, bool ceil_mode, at::MemoryFormat memory_format) {
  if (!needs_grad(grad_output)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::max_pool2d_backward(grad_output, offsets, input_size, kernel_size, stride, padding, dilation, ceil_mode,
                                    memory_format);
  }
  const MaxPool2dOptions options{kernel_size.vec(), stride.vec(), padding.vec(), dilation.vec(), ceil_mode};
  return MaxPool2dBackwardFunction::apply(grad_output, offsets, input_size.vec(), options, memory_format)[0];
}

Tensor max_pool2d_gather_autograd(const Tensor& values, const Tensor& offsets, SymIntArrayRef kernel_size,
                                  SymIntArrayRef stride, SymIntArrayRef padding, SymIntArrayRef dilation,
                                  bool ceil_mode) {
  if (!needs_grad(values)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::_max_pool2d_gather(values, offsets, kernel_size, stride, padding, dilation, ceil_mode);
  }
  const MaxPool2dOptions options{kernel_size.vec(), stride.vec(), padding.vec(), dilation.vec(), ceil_mode};
  return MaxPool2dGatherFunction::apply(values, offsets, options)[0];
}

}  // namespace
}  // namespace fastcnn::autograd

TORCH_LIBRARY_IMPL(fastcnn, Autograd, m) {
  m.impl("max_pool2d", fastcnn::autograd::max_pool2d_autograd);
  m.impl("max_pool2d_with_indices", fastcnn::autograd::max_pool2d_with_indices_autograd);
  m.impl("max_pool2d_backward", fastcnn::autograd::max_pool2d_backward_autograd);
  m.impl("_max_pool2d_train", fastcnn::autograd::max_pool2d_train_autograd);
  m.impl("_max_pool2d_gather", fastcnn::autograd::max_pool2d_gather_autograd);
}
