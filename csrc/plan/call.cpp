// The values of one run: where they lie, and inputs of other layouts copied to NHWC.
#include <ATen/ops/empty.h>

#include "../common/layout.h"
#include "steps.h"

namespace fastcnn::plan {
namespace {

// [N, C, H, W] or [N, C] as [N, H, W, C].
at::Tensor pixels_first(const at::Tensor& input) {
  return input.dim() == 2 ? input.unsqueeze(1).unsqueeze(1) : input.permute({0, 2, 3, 1});
}

cpu::ImageView<float> view(const float* data, int64_t batch, const Value& v, int64_t pitch) {
  return {data, batch, v.height, v.width, v.channels, v.pixels() * pitch, v.width * pitch, pitch, 1};
}

}  // namespace

Call::Call(const Spec& spec, const std::vector<at::Tensor>& inputs, std::vector<at::Tensor>& outputs, float* arena,
           int64_t batch)
    : spec_(spec), inputs_(inputs), outputs_(outputs), copies_(inputs.size()), arena_(arena), batch_(batch) {}

cpu::ImageView<float> Call::image(int64_t value) const {
  const Value& v = spec_.values[value];
  if (v.storage != Storage::input) {
    const float* base =
        v.storage == Storage::arena ? arena_ + batch_ * v.place : outputs_[v.place].const_data_ptr<float>();
    return view(base + v.first_channel, batch_, v, v.pitch);
  }
  const at::Tensor pixels = pixels_first(inputs_[v.place]);
  return {pixels.const_data_ptr<float>(),
          batch_,
          v.height,
          v.width,
          v.channels,
          pixels.stride(0),
          pixels.stride(1),
          pixels.stride(2),
          pixels.stride(3)};
}

cpu::ImageView<float> Call::nhwc(int64_t value) {
  const Value& v = spec_.values[value];
  if (v.storage != Storage::input) return image(value);
  const at::Tensor pixels = pixels_first(inputs_[v.place]);
  if (const auto pitch = layout::row_stride(pixels)) return view(pixels.const_data_ptr<float>(), batch_, v, *pitch);
  at::Tensor& copy = copies_[v.place];
  if (!copy.defined()) copy = at::empty(pixels.sizes(), pixels.options()).copy_(pixels);
  return view(copy.const_data_ptr<float>(), batch_, v, v.channels);
}

Rows Call::rows(int64_t value) {
  const cpu::ImageView<float> image = nhwc(value);
  return {const_cast<float*>(image.data), image.stride_w};  // steps write outputs and the arena only
}

std::string activation_text(Activation activation) {
  constexpr const char* kNames[] = {"", "relu", "sigmoid", "relu6", "hard_sigmoid", "hard_swish", "silu"};
  static_assert(std::size(kNames) == static_cast<size_t>(kLastActivation) + 1);
  return activation == Activation::none ? "" : std::string(", ") + kNames[static_cast<size_t>(activation)];
}

std::string shape_text(const Value& v) {
  const std::string channels = std::to_string(v.channels);
  return v.flat ? channels : channels + " @ " + std::to_string(v.height) + "x" + std::to_string(v.width);
}

}  // namespace fastcnn::plan
