// Dispatcher handles of the ops in ops.h, each looked up once.
#include "ops.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace fastcnn::ops {
namespace {

template <typename Function>
auto find(const char* name, Function*) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

}  // namespace

#define FASTCNN_CALL(name, ...)                                    \
  static auto handle = find("fastcnn::" #name, &fastcnn::ops::name); \
  return handle.call(__VA_ARGS__)

Tensor conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, c10::SymIntArrayRef stride,
              c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
              std::optional<std::string_view> activation) {
  FASTCNN_CALL(conv2d, input, weight, bias, stride, padding, dilation, groups, activation);
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad_output, const Tensor& input,
                                                   const Tensor& weight, c10::SymIntArrayRef stride,
                                                   c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                                   c10::SymInt groups, std::array<bool, 3> output_mask) {
  FASTCNN_CALL(conv2d_backward, grad_output, input, weight, stride, padding, dilation, groups, output_mask);
}

}  // namespace fastcnn::ops
