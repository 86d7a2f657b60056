// What the autograd nodes of the pooling ops share.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

#include "../cpu/dtypes.h"
#include "saved.h"

namespace fastcnn::autograd {

// Whether the CUDA library is loaded.
inline bool has_cuda_kernels() {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("fastcnn::_max_pool2d_train", "");
  return op.hasKernelForDispatchKey(c10::DispatchKey::CUDA);
}

// Whether pooling's own ops cover the tensor, and with them its gradient. Meta tensors stand for CPU ones.
inline bool has_kernels(const Tensor& t) {
  const bool on_device = t.device().is_cpu() || t.device().is_meta() || (t.device().is_cuda() && has_cuda_kernels());
  return on_device && cpu::is_covered(t.scalar_type());
}

// The size and layout that a gradient has to take.
inline void save_layout(torch::autograd::AutogradContext* ctx, const Tensor& t) {
  ctx->saved_data["input_size"] = t.sym_sizes();
  ctx->saved_data["memory_format"] = static_cast<int64_t>(t.suggest_memory_format());
}
inline std::vector<c10::SymInt> load_size(torch::autograd::AutogradContext* ctx) {
  return ctx->saved_data["input_size"].toSymIntVector();
}
inline at::MemoryFormat load_format(torch::autograd::AutogradContext* ctx) {
  return static_cast<at::MemoryFormat>(ctx->saved_data["memory_format"].toInt());
}

}  // namespace fastcnn::autograd
