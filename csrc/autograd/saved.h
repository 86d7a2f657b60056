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
  const backends::Switches& switches = backends::current();
#define FASTCNN_SAVE(name, Type, initial) static_cast<int64_t>(switches.name),
  ctx->saved_data["switches"] = std::vector<int64_t>{FASTCNN_SWITCHES(FASTCNN_SAVE)};
#undef FASTCNN_SAVE
}

inline backends::Switches load_switches(torch::autograd::AutogradContext* ctx) {
  const auto values = ctx->saved_data["switches"].toIntList();
  int i = 0;
#define FASTCNN_LOAD(name, Type, initial) static_cast<Type>(values.get(i++)),
  return {FASTCNN_SWITCHES(FASTCNN_LOAD)};
#undef FASTCNN_LOAD
}

}  // namespace fastcnn::autograd
