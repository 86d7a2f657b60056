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

void activate(int64_t rows, int64_t channels, Rows data, Activation activation) {
  backends::record_kernel("activation");
  over_rows(rows, channels, [&](int64_t begin, int64_t end) {
    cpu::kernels().f32.activation({data.data + begin * data.pitch, data.pitch, end - begin, channels, activation});
  });
}

// Each image's channels by factors of its own: [N, C, H, W] * [N, C, 1, 1].
class ScaleImagesStep final : public Step {
 public:
  explicit ScaleImagesStep(StepReader& r) : in_(r.read("in")), factors_(r.read("factors")), out_(r.write("out")) {
    r.done();
    const Value &in = r.value(in_), &factors = r.value(factors_);
    r.check_same_shape(in_, out_), r.check_overlap(in_, out_, true);
    r.check(factors.pixels() == 1, "expected factors of one pixel, but got value ", factors_, " of ", factors.height,
            " x ", factors.width);
    r.check_channels(factors_, out_), r.check_overlap(factors_, out_, false);
    pixels_ = in.pixels(), channels_ = in.channels;
    text_ = "scale_images " + shape_text(in) + ": batch_norm_apply";
  }

  void run(Call& call) const override {
    backends::record_kernel("batch_norm_apply");
    const Rows in = call.rows(in_), factors = call.rows(factors_), out = call.rows(out_);
    const float* zero = zeros(channels_);
    over_rows(call.pixels(out_), channels_, [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t image = begin / pixels_, last = std::min(end, (image + 1) * pixels_);
        cpu::kernels().f32.batch_norm_apply(
            {in.data + begin * in.pitch, nullptr, zero, factors.data + image * factors.pitch, zero,
             out.data + begin * out.pitch, nullptr, last - begin, channels_, in.pitch, 0, out.pitch, 0, false, false});
        begin = last;
      }
    });
  }
  std::string describe() const override { return text_; }

 private:
  int64_t in_, factors_, out_, pixels_, channels_;
  std::string text_;
};

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
  // 2. The others, of rows that are in cache where they are few.
  if (activation != Activation::none && !relu) activate(rows, channels, output, activation);
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
  const char* kernel = activation == Activation::none   ? "copy"
                       : activation == Activation::relu ? "batch_norm_apply"
                                                        : "activation";
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

std::unique_ptr<Step> make_scale_images(StepReader& r) { return std::make_unique<ScaleImagesStep>(r); }

}  // namespace fastcnn::plan
