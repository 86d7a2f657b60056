// Autograd of batch norm, in training and in inference. Saved are the input, the statistics and the ReLU's mask, one
// bit an element; the normalised values are computed again. The statistics get no gradient of their own.
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../common/bit_mask.h"
#include "../ops.h"
#include "saved.h"

namespace fastcnn::autograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

bool given(const OptionalTensor& t) { return t.has_value() && t->defined(); }
Tensor value(const OptionalTensor& t) { return t.value_or(Tensor()); }

Gradients call_backward(bool training, const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                        const Tensor& var, const OptionalTensor& weight, const Tensor& mask, double eps,
                        std::array<bool, 4> output_mask, const OptionalTensor& switches) {
  const auto op = training ? &ops::batch_norm_train_backward : &ops::batch_norm_infer_backward;
  return op(grad_output, input, mean, var, weight, mask, eps, output_mask, switches);
}

// Without mean and var it normalises by the batch's own, and gives {output, mask, mean, var}; else {output, mask}.
class BatchNormFunction : public torch::autograd::Function<BatchNormFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& residual, const OptionalTensor& mean,
                               const OptionalTensor& var, double eps, bool relu) {
    at::AutoDispatchBelowADInplaceOrView below;
    const bool training = !given(mean);
    Tensor output, batch_mean, batch_var, mask, switches;
    if (training && is_traced(input)) {
      std::tie(output, batch_mean, batch_var, mask, switches) =
          ops::_batch_norm_train_traced(input, weight, bias, residual, eps, relu);
    } else if (training) {
      std::tie(output, batch_mean, batch_var, mask) = ops::_batch_norm_train(input, weight, bias, residual, eps, relu);
    } else if (is_traced(input)) {
      std::tie(output, mask, switches) =
          ops::_batch_norm_infer_traced(input, *mean, *var, weight, bias, residual, eps, relu);
    } else {
      std::tie(output, mask) = ops::_batch_norm_infer(input, *mean, *var, weight, bias, residual, eps, relu);
    }
    variable_list results{output, mask};
    if (training) results.insert(results.end(), {batch_mean, batch_var});
    ctx->mark_non_differentiable({results.begin() + 1, results.end()});
    save_switches(ctx);
    ctx->saved_data["training"] = training;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["relu"] = relu;
    ctx->saved_data["has"] = std::vector<bool>{true, given(weight), given(bias), given(residual)};
    ctx->save_for_backward(
        {input, training ? batch_mean : *mean, training ? batch_var : *var, value(weight), mask, switches});
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return variable_list(8);
    const backends::Guard switches(load_switches(ctx));
    const auto saved = ctx->get_saved_variables();
    const bool relu = ctx->saved_data["relu"].toBool();
    const auto has = ctx->saved_data["has"].toBoolList();
    // Input, weight, bias, residual: needs_input_grad counts those that are there.
    std::array<bool, 4> wanted;
    for (size_t i = 0, edge = 0; i < 4; ++i) wanted[i] = has[i] && ctx->needs_input_grad(edge++);
    // Without ReLU the residual's gradient is the output's: no op may return its input, this node may.
    const std::array<bool, 4> output_mask{wanted[0], wanted[1], wanted[2], wanted[3] && relu};
    auto [grad_input, grad_weight, grad_bias, grad_residual] =
        call_backward(ctx->saved_data["training"].toBool(), grads[0], saved[0], saved[1], saved[2], optional(saved[3]),
                      saved[4], ctx->saved_data["eps"].toDouble(), output_mask, optional(saved[5]));
    if (!relu) grad_residual = grads[0];
    variable_list result(8);
    if (wanted[0]) result[0] = grad_input;
    if (wanted[1]) result[1] = grad_weight;
    if (wanted[2]) result[2] = grad_bias;
    if (wanted[3]) result[3] = grad_residual;
    return result;
  }
};

// The per-channel values [c] as [1, c, 1, ...], and the mean over everything but the channels in that shape.
Tensor per_channel(const Tensor& t, int64_t rank) {
  std::vector<c10::SymInt> shape(rank, 1);
  shape[1] = -1;
  return t.reshape_symint(shape);
}
std::vector<int64_t> reduced_dims(const Tensor& t) {
  std::vector<int64_t> dims{0};
  for (int64_t d = 2; d < t.dim(); ++d) dims.push_back(d);
  return dims;
}
Tensor channel_mean(const Tensor& t) { return t.mean(reduced_dims(t), /*keepdim=*/true); }
Tensor channel_sum(const Tensor& t) { return t.sum(reduced_dims(t)); }

// Gradients of (grad_input, grad_weight, grad_bias, grad_residual) by (grad_output, input, weight), as differentiable
// tensor operations. In training the statistics are functions of the input, and are computed from it again.
class BatchNormBackwardFunction : public torch::autograd::Function<BatchNormBackwardFunction> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& input,
                               const OptionalTensor& weight, const Tensor& mean, const Tensor& var, const Tensor& mask,
                               double eps, bool training, std::array<bool, 4> output_mask,
                               const OptionalTensor& given_switches) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [grad_input, grad_weight, grad_bias, grad_residual] =
        call_backward(training, grad_output, input, mean, var, weight, mask, eps, output_mask, given_switches);
    save_switches(ctx);
    ctx->saved_data["training"] = training;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["mask"] = std::vector<bool>(output_mask.begin(), output_mask.end());
    ctx->save_for_backward({grad_output, input, mean, var, value(weight), mask});
    return {grad_input, grad_weight, grad_bias, grad_residual};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const backends::Guard switches(load_switches(ctx));
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[1], &weight = saved[4], &mask = saved[5];
    const auto dtype = input.scalar_type();
    const auto compute = dtype == at::kDouble ? at::kDouble : at::kFloat;
    const int64_t rank = input.dim();
    const auto asked = ctx->saved_data["mask"].toBoolList();
    const bool training = ctx->saved_data["training"].toBool();

    // 1. g: what the ReLU lets pass. x: the centred input. s: one over the standard deviation.
    // a, b, c, d: the gradients that arrive for grad_input, grad_weight, grad_bias and grad_residual.
    const Tensor bits = mask.dim() == 2 ? bit_mask::unpack(mask, input).to(compute) : Tensor();
    const auto masked = [&](const Tensor& t) { return bits.defined() ? t * bits : t; };
    const Tensor g = masked(saved[0].to(compute));
    Tensor x = input.to(compute), var;
    if (training) {
      x = x - channel_mean(x);
      var = channel_mean(x * x);
    } else {
      x = x - per_channel(saved[2].to(compute), rank);
      var = per_channel(saved[3].to(compute), rank);
    }
    const Tensor s = (var + ctx->saved_data["eps"].toDouble()).rsqrt();
    const Tensor gamma = weight.defined() ? per_channel(weight.to(compute), rank) : Tensor();
    const auto scaled = [&](const Tensor& t) { return gamma.defined() ? t * gamma : t; };
    const auto arrived = [&](int i) { return asked[i] && grads[i].defined() ? grads[i].to(compute) : Tensor(); };
    const Tensor a = arrived(0), d = arrived(3);
    const Tensor b = arrived(1).defined() ? per_channel(arrived(1), rank) : Tensor();
    const Tensor c = arrived(2).defined() ? per_channel(arrived(2), rank) : Tensor();

    // 2. In inference grad_input = gamma s g; in training gamma s (g - mean(g) - x s^2 mean(g x)).
    //    grad_weight = s sum(g x), grad_bias = sum(g), grad_residual = g; and mean(x) = 0, ds/dx = -s^3 x / count.
    Tensor by_g, by_x, by_gamma;
    if (a.defined()) {
      Tensor normal = a, product = a * g;
      if (training) {
        const Tensor a0 = a - channel_mean(a), g0 = g - channel_mean(g);
        const Tensor u = channel_mean(a * x), v = channel_mean(g * x), s2 = s * s;
        normal = a0 - x * (s2 * u);
        product = a0 * g0 - x * g * (s2 * u);
        const Tensor p = channel_mean(a0 * g0);
        by_x = scaled((s * s2) * (x * (3 * s2 * u * v - p) - v * a0 - u * g0));
      }
      by_g = scaled(normal * s);
      by_gamma = channel_sum(product * s);
    }
    if (b.defined()) {
      accumulate(by_g, b * s * x);
      accumulate(by_x, training ? b * s * (g - channel_mean(g) - x * (s * s * channel_mean(g * x))) : b * s * g);
    }
    if (c.defined()) accumulate(by_g, c.expand_symint(input.sym_sizes()));
    if (d.defined()) accumulate(by_g, d);

    const auto result = [&](size_t i, const Tensor& t, const Tensor& like) {
      return ctx->needs_input_grad(i) && t.defined() ? t.to(like.scalar_type()) : Tensor();
    };
    variable_list results(10);
    results[0] = result(0, by_g.defined() ? masked(by_g) : by_g, saved[0]);
    results[1] = result(1, by_x, input);
    if (weight.defined()) results[2] = result(2, by_gamma, weight);
    return results;
  }

 private:
  static void accumulate(Tensor& sum, const Tensor& term) { sum = sum.defined() ? sum + term : term; }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> _batch_norm_train_autograd(const Tensor& input, const OptionalTensor& weight,
                                                                      const OptionalTensor& bias,
                                                                      const OptionalTensor& residual, double eps,
                                                                      bool relu) {
  if (!needs_grad(input, weight, bias, residual)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::_batch_norm_train(input, weight, bias, residual, eps, relu);
  }
  const auto r = BatchNormFunction::apply(input, weight, bias, residual, OptionalTensor(), OptionalTensor(), eps, relu);
  return {r[0], r[2], r[3], r[1]};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_train_autograd(const Tensor& input, const OptionalTensor& weight,
                                                             const OptionalTensor& bias, const OptionalTensor& residual,
                                                             double eps, bool relu) {
  if (!needs_grad(input, weight, bias, residual)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::batch_norm_train(input, weight, bias, residual, eps, relu);
  }
  auto [output, mean, var, mask] = _batch_norm_train_autograd(input, weight, bias, residual, eps, relu);
  return {output, mean, var};
}

std::tuple<Tensor, Tensor> _batch_norm_infer_autograd(const Tensor& input, const Tensor& mean, const Tensor& var,
                                                      const OptionalTensor& weight, const OptionalTensor& bias,
                                                      const OptionalTensor& residual, double eps, bool relu) {
  if (!needs_grad(input, weight, bias, residual)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::_batch_norm_infer(input, mean, var, weight, bias, residual, eps, relu);
  }
  const auto r =
      BatchNormFunction::apply(input, weight, bias, residual, OptionalTensor(mean), OptionalTensor(var), eps, relu);
  return {r[0], r[1]};
}

Tensor batch_norm_infer_autograd(const Tensor& input, const Tensor& mean, const Tensor& var,
                                 const OptionalTensor& weight, const OptionalTensor& bias,
                                 const OptionalTensor& residual, double eps, bool relu) {
  if (!needs_grad(input, weight, bias, residual)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::batch_norm_infer(input, mean, var, weight, bias, residual, eps, relu);
  }
  return std::get<0>(_batch_norm_infer_autograd(input, mean, var, weight, bias, residual, eps, relu));
}

template <bool kTraining>
Gradients batch_norm_backward_autograd(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                       const Tensor& var, const OptionalTensor& weight, const Tensor& mask, double eps,
                                       std::array<bool, 4> output_mask, const OptionalTensor& switches) {
  if (!needs_grad(grad_output, input, weight)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return call_backward(kTraining, grad_output, input, mean, var, weight, mask, eps, output_mask, switches);
  }
  const auto grads = BatchNormBackwardFunction::apply(grad_output, input, weight, mean, var, mask, eps, kTraining,
                                                      output_mask, switches);
  return {grads[0], grads[1], grads[2], grads[3]};
}

// No gradient flows through the running statistics, but whoever saved them for a backward must notice the change.
void batch_norm_update_in_place(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean,
                                const Tensor& var, double momentum, c10::SymInt rows) {
  {
    at::AutoDispatchBelowADInplaceOrView below;
    ops::_batch_norm_update(running_mean, running_var, mean, var, momentum, std::move(rows));
  }
  torch::autograd::impl::bump_version(running_mean);
  torch::autograd::impl::bump_version(running_var);
}

}  // namespace
}  // namespace fastcnn::autograd

TORCH_LIBRARY_IMPL(fastcnn, ADInplaceOrView, m) {
  m.impl("_batch_norm_update", fastcnn::autograd::batch_norm_update_in_place);
}

// torch's autocast leaves batch norm in the input's dtype, and so do we.
TORCH_LIBRARY_IMPL(fastcnn, Autograd, m) {
  m.impl("batch_norm_train", fastcnn::autograd::batch_norm_train_autograd);
  m.impl("_batch_norm_train", fastcnn::autograd::_batch_norm_train_autograd);
  m.impl("batch_norm_train_backward", fastcnn::autograd::batch_norm_backward_autograd<true>);
  m.impl("batch_norm_infer", fastcnn::autograd::batch_norm_infer_autograd);
  m.impl("_batch_norm_infer", fastcnn::autograd::_batch_norm_infer_autograd);
  m.impl("_batch_norm_update", torch::CppFunction::makeFallthrough());
  m.impl("batch_norm_infer_backward", fastcnn::autograd::batch_norm_backward_autograd<false>);
}
