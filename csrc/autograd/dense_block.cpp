// Autograd and autocast of a dense block. Saved are the features, which are the output, the batch's statistics and the
// parameters: memory linear in the number of layers. There is no second derivative.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../ops.h"
#include "saved.h"

namespace fastcnn::autograd {
namespace {

using at::TensorList;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool any_needs_grad(TensorList tensors) {
  for (const Tensor& t : tensors)
    if (needs_grad(t)) return true;
  return false;
}

// Without statistics it normalises by the batch's own, and gives {features, mean, var}; else {features}.
class DenseBlockFunction : public torch::autograd::Function<DenseBlockFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& input, TensorList parameters, TensorList statistics,
                               const std::vector<double>& eps) {
    at::AutoDispatchBelowADInplaceOrView below;
    const bool training = statistics.empty();
    variable_list saved(parameters.begin(), parameters.end());
    Tensor features, mean, var, switches;
    if (training) {
      if (is_traced(input)) {
        std::tie(features, mean, var, switches) = ops::_dense_block_train_traced(input, parameters, eps);
      } else {
        std::tie(features, mean, var) = ops::dense_block_train(input, parameters, eps);
      }
      ctx->mark_non_differentiable({mean, var});
      saved.insert(saved.end(), {mean, var});
    } else {
      if (is_traced(input)) {
        std::tie(features, switches) = ops::_dense_block_infer_traced(input, statistics, parameters, eps);
      } else {
        features = ops::dense_block_infer(input, statistics, parameters, eps);
      }
      saved.insert(saved.end(), statistics.begin(), statistics.end());
    }
    saved.insert(saved.end(), {features, switches});
    save_switches(ctx);
    ctx->saved_data["training"] = training;
    ctx->saved_data["eps"] = eps;
    ctx->save_for_backward(saved);
    return training ? variable_list{features, mean, var} : variable_list{features};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const backends::Guard switches(load_switches(ctx));
    const auto saved = ctx->get_saved_variables();
    const bool training = ctx->saved_data["training"].toBool();
    const auto eps = ctx->saved_data["eps"].toDoubleVector();
    const size_t parameters = 4 * eps.size(), statistics = saved.size() - 2 - parameters;
    variable_list result(1 + parameters + (training ? 0 : statistics) + 1);
    if (!grads[0].defined()) return result;
    c10::List<bool> mask;
    for (size_t i = 0; i <= parameters; ++i) mask.push_back(ctx->needs_input_grad(i));
    const auto op = training ? &ops::dense_block_train_backward : &ops::dense_block_infer_backward;
    const TensorList all(saved);
    const auto gradients = op(grads[0], saved[parameters + statistics], all.slice(parameters, statistics),
                              all.slice(0, parameters), eps, mask, optional(saved.back()));
    for (size_t i = 0; i <= parameters; ++i)
      if (mask[i]) result[i] = gradients[i];
    return result;
  }
};

// Its own backward refuses.
class DenseBlockBackwardFunction : public torch::autograd::Function<DenseBlockBackwardFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext*, const Tensor& grad_output, const Tensor& features,
                               TensorList parameters, TensorList statistics, const std::vector<double>& eps,
                               const c10::List<bool>& mask, bool training, const OptionalTensor& switches) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto op = training ? &ops::dense_block_train_backward : &ops::dense_block_infer_backward;
    return op(grad_output, features, statistics, parameters, eps, mask, switches);
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false,
                                "fastcnn::dense_block: double backward is not implemented. Set `fused = False` on the "
                                "fastcnn.nn.DenseBlock: its layers, run one by one, have derivatives of every order");
  }
};

std::tuple<Tensor, Tensor, Tensor> dense_block_train_autograd(const Tensor& input, TensorList parameters,
                                                              at::ArrayRef<double> eps) {
  if (!needs_grad(input) && !any_needs_grad(parameters)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::dense_block_train(input, parameters, eps);
  }
  const auto r = DenseBlockFunction::apply(input, parameters, TensorList(), eps.vec());
  return {r[0], r[1], r[2]};
}

Tensor dense_block_infer_autograd(const Tensor& input, TensorList statistics, TensorList parameters,
                                  at::ArrayRef<double> eps) {
  if (!needs_grad(input) && !any_needs_grad(parameters)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::dense_block_infer(input, statistics, parameters, eps);
  }
  return DenseBlockFunction::apply(input, parameters, statistics, eps.vec())[0];
}

template <bool kTraining>
std::vector<Tensor> dense_block_backward_autograd(const Tensor& grad_output, const Tensor& features,
                                                  TensorList statistics, TensorList parameters,
                                                  at::ArrayRef<double> eps, c10::List<bool> output_mask,
                                                  const OptionalTensor& switches) {
  if (!needs_grad(grad_output, features) && !any_needs_grad(parameters)) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto op = kTraining ? &ops::dense_block_train_backward : &ops::dense_block_infer_backward;
    return op(grad_output, features, statistics, parameters, eps, output_mask, switches);
  }
  return DenseBlockBackwardFunction::apply(grad_output, features, parameters, statistics, eps.vec(), output_mask,
                                           kTraining, switches);
}

// As the layers one by one: batch norm in the input's dtype, convolutions in the region's lower precision.
std::vector<Tensor> cast_convolutions(TensorList parameters, c10::DeviceType device) {
  std::vector<Tensor> cast = parameters.vec();
  const auto dtype = at::autocast::get_autocast_dtype(device);
  for (size_t i = 0; i < cast.size(); ++i)
    if (i % 4 >= 2) cast[i] = at::autocast::cached_cast(dtype, cast[i], device);
  return cast;
}

std::tuple<Tensor, Tensor, Tensor> dense_block_train_autocast(const Tensor& input, TensorList parameters,
                                                              at::ArrayRef<double> eps) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  return ops::dense_block_train(input, cast_convolutions(parameters, c10::DeviceType::CPU), eps);
}

Tensor dense_block_infer_autocast(const Tensor& input, TensorList statistics, TensorList parameters,
                                  at::ArrayRef<double> eps) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  return ops::dense_block_infer(input, statistics, cast_convolutions(parameters, c10::DeviceType::CPU), eps);
}

}  // namespace
}  // namespace fastcnn::autograd

TORCH_LIBRARY_IMPL(fastcnn, Autograd, m) {
  m.impl("dense_block_train", fastcnn::autograd::dense_block_train_autograd);
  m.impl("dense_block_infer", fastcnn::autograd::dense_block_infer_autograd);
  m.impl("dense_block_train_backward", fastcnn::autograd::dense_block_backward_autograd<true>);
  m.impl("dense_block_infer_backward", fastcnn::autograd::dense_block_backward_autograd<false>);
}

TORCH_LIBRARY_IMPL(fastcnn, AutocastCPU, m) {
  m.impl("dense_block_train", fastcnn::autograd::dense_block_train_autocast);
  m.impl("dense_block_infer", fastcnn::autograd::dense_block_infer_autocast);
}
