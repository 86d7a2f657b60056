// What the autograd nodes share: whether a graph is wanted, and keeping sizes and switches between forward and
// backward.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <vector>

#include "../common/backends.h"

namespace fastcnn::autograd {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline bool requires_grad(const Tensor& t) { return t.defined() && t.requires_grad(); }
inline bool requires_grad(const OptionalTensor& t) { return t.has_value() && requires_grad(*t); }

template <typename... Tensors>
bool needs_grad(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}

inline void save_switches(torch::autograd::AutogradContext* ctx) {
  ctx->saved_data["fallback"] = backends::current().fallback;
}

inline backends::Switches load_switches(torch::autograd::AutogradContext* ctx) {
  backends::Switches switches;
  switches.fallback = ctx->saved_data["fallback"].toBool();
  return switches;
}

}  // namespace fastcnn::autograd
