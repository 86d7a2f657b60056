// Steps that take each element by itself, over rows of channels.
#include <cstring>

#include "../cpu/parallel.h"
#include "steps.h"

namespace fastcnn::plan {
namespace {

constexpr int64_t kGrainElements = 32 * 1024;  // a thread takes at least: some 10 us in cache
constexpr int64_t kWideRow = 1024;             // dense rows are one, of pieces that long

// Per-channel operands of rows that have none.
const float* ones(int64_t channels) {
  thread_local std::vector<float> values;
  if (static_cast<int64_t>(values.size()) < channels) values.resize(channels, 1);
  return values.data();
}
const float* zeros(int64_t channels) {
  thread_local std::vector<float> values;
  if (static_cast<int64_t>(values.size()) < channels) values.resize(channels, 0);
  return values.data();
}

template <typename Work>
void over_rows(int64_t rows, int64_t channels, const Work& work) {
  cpu::parallel_for(0, rows, std::max<int64_t>(1, kGrainElements / channels), work);
}

// A residual step of a plan: its fields, then how to run it.
class RowsStep final : public Step {
 public:
  RowsStep(std::string text, int64_t in, int64_t out, int64_t channels, at::Tensor scale, at::Tensor shift,
           int64_t residual, Activation activation)
      : text_(std::move(text)),
        in_(in),
        out_(out),
        channels_(channels),
        residual_(residual),
        scale_(std::move(scale)),
        shift_(std::move(shift)),
        activation_(activation) {}

  void run(Call& call) const override {
    const Rows in = call.rows(in_), out = call.rows(out_);
    const Rows residual = residual_ >= 0 ? call.rows(residual_) : Rows{nullptr, 0};
    apply(call.pixels(out_), channels_, in, scale_, shift_, residual, activation_, out);
  }
  std::string describe() const override { return text_; }

 private:
  std::string text_;
  int64_t in_, out_, channels_, residual_;
  at::Tensor scale_, shift_;
  Activation activation_;
};

void apply_sigmoid(int64_t rows, int64_t channels, Rows data) {
  backends::record_kernel("sigmoid");
  over_rows(rows, channels, [&](int64_t begin, int64_t end) {
    cpu::kernels().f32.sigmoid({data.data + begin * data.pitch, data.pitch, end - begin, channels});
  });
}

}  // namespace

void copy(int64_t rows, int64_t channels, Rows input, Rows output) {
  over_rows(rows, channels, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      std::memcpy(output.data + row * output.pitch, input.data + row * input.pitch, sizeof(float) * channels);
  });
}

void apply(int64_t rows, int64_t channels, Rows input, const at::Tensor& scale, const at::Tensor& shift, Rows residual,
           Activation activation, Rows output) {
  const bool dense =
      input.pitch == channels && output.pitch == channels && (residual.data == nullptr || residual.pitch == channels);
  if (dense && !scale.defined() && channels != kWideRow && rows * channels > kWideRow) {
    const int64_t whole = rows * channels / kWideRow, done = whole * kWideRow, rest = rows * channels - done;
    const auto wide = [](Rows r, int64_t first, int64_t pitch) {
      return Rows{r.data == nullptr ? nullptr : r.data + first, pitch};
    };
    apply(whole, kWideRow, wide(input, 0, kWideRow), {}, {}, wide(residual, 0, kWideRow), activation,
          wide(output, 0, kWideRow));
    if (rest > 0)
      apply(1, rest, wide(input, done, rest), {}, {}, wide(residual, done, rest), activation, wide(output, done, rest));
    return;
  }
  // 1. What a normalisation's kernel does.
  const bool relu = activation == Activation::relu;
  if (scale.defined() || residual.data != nullptr || relu) {
    backends::record_kernel("batch_norm_apply");
    const float *zero = zeros(channels), *factor = scale.defined() ? scale.const_data_ptr<float>() : ones(channels);
    const float* offset = shift.defined() ? shift.const_data_ptr<float>() : zero;
    over_rows(rows, channels, [&](int64_t begin, int64_t end) {
      cpu::kernels().f32.batch_norm_apply({input.data + begin * input.pitch,
                                           residual.data != nullptr ? residual.data + begin * residual.pitch : nullptr,
                                           zero, factor, offset, output.data + begin * output.pitch, nullptr,
                                           end - begin, channels, input.pitch, residual.pitch, output.pitch, 0, relu,
                                           false});
    });
  } else if (input.data != output.data) {
    copy(rows, channels, input, output);
  }
  // 2. The sigmoid, of rows that are in cache where they are few.
  if (activation == Activation::sigmoid) apply_sigmoid(rows, channels, output);
}

std::unique_ptr<Step> make_scale_shift(StepReader& r) {
  const int64_t in = r.read("in"), out = r.write("out");
  const at::Tensor scale = r.constant("scale"), shift = r.constant("shift");
  const Activation activation = r.activation();
  r.done();
  const int64_t channels = r.value(out).channels;
  r.check_same_shape(in, out), r.check_overlap(in, out, true);
  r.check_sizes("scale", scale, {channels}), r.check_sizes("shift", shift, {channels});
  return std::make_unique<RowsStep>(
      "scale_shift " + shape_text(r.value(out)) + activation_text(activation) + ": batch_norm_apply", in, out, channels,
      scale, shift, -1, activation);
}

std::unique_ptr<Step> make_add(StepReader& r) {
  const int64_t a = r.read("a"), b = r.read("b"), out = r.write("out");
  const Activation activation = r.activation();
  r.done();
  for (const int64_t in : {a, b}) r.check_same_shape(in, out), r.check_overlap(in, out, true);
  return std::make_unique<RowsStep>(
      "add " + shape_text(r.value(out)) + activation_text(activation) + ": batch_norm_apply", a, out,
      r.value(out).channels, at::Tensor(), at::Tensor(), b, activation);
}

std::unique_ptr<Step> make_activation(StepReader& r) {
  const int64_t in = r.read("in"), out = r.write("out");
  const Activation activation = r.activation();
  r.done();
  r.check_same_shape(in, out), r.check_overlap(in, out, true);
  const char* kernel = activation == Activation::sigmoid ? "sigmoid"
                       : activation == Activation::relu  ? "batch_norm_apply"
                                                         : "copy";
  return std::make_unique<RowsStep>(
      "activation " + shape_text(r.value(out)) + activation_text(activation) + ": " + kernel, in, out,
      r.value(out).channels, at::Tensor(), at::Tensor(), -1, activation);
}

std::unique_ptr<Step> make_copy(StepReader& r) {
  const int64_t in = r.read("in"), out = r.write("out");
  r.done();
  r.check_same_shape(in, out), r.check_overlap(in, out, true);
  return std::make_unique<RowsStep>("copy " + shape_text(r.value(out)) + ": copy", in, out, r.value(out).channels,
                                    at::Tensor(), at::Tensor(), -1, Activation::none);
}

}  // namespace fastcnn::plan
