// What the autograd nodes share: whether a graph is wanted, and keeping sizes and switches between forward and
// backward.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <vector>

#include "../common/switches.h"

namespace fastcnn::autograd {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline bool requires_grad(const Tensor& t) { return t.defined() && t.requires_grad(); }
inline bool requires_grad(const OptionalTensor& t) { return t.has_value() && requires_grad(*t); }

inline OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

template <typename... Tensors>
bool needs_grad(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}

// Whether a graph is being traced, which will run without this file's nodes.
inline bool is_traced(const Tensor& t) { return t.key_set().has(c10::DispatchKey::Python); }

inline void save_switches(torch::autograd::AutogradContext* ctx) {
  ctx->saved_data["switches"] = backends::to_values(backends::current());
}

inline backends::Switches load_switches(torch::autograd::AutogradContext* ctx) {
  return backends::from_values(ctx->saved_data["switches"].toIntVector().data());
}

}  // namespace fastcnn::autograd
