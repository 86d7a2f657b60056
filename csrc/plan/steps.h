// The steps of a plan. A step is made from its record, which it checks, once; it runs on the values of a call, from any
// number of threads at a time.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "../cpu/conv2d.h"
#include "../cpu/parallel.h"
#include "../cpu/pool2d.h"
#include "spec.h"

namespace fastcnn::plan {

// Rows of neighbouring channels, `pitch` floats apart: the pixels of all images.
struct Rows {
  float* data;
  int64_t pitch;
};

// The values of one run.
class Call {
 public:
  Call(const Spec& spec, const std::vector<at::Tensor>& inputs, std::vector<at::Tensor>& outputs, float* arena,
       int64_t batch);

  int64_t batch() const { return batch_; }
  int64_t pixels(int64_t value) const { return batch_ * spec_.values[value].pixels(); }
  // A value as it is; an input has the strides of the caller's tensor.
  cpu::ImageView<float> image(int64_t value) const;
  // The same with neighbouring channels and pixels evenly spaced: an input that has not is copied, once a call.
  cpu::ImageView<float> nhwc(int64_t value);
  Rows rows(int64_t value);

 private:
  const Spec& spec_;
  const std::vector<at::Tensor>& inputs_;
  std::vector<at::Tensor>& outputs_;
  std::vector<at::Tensor> copies_;  // of inputs, where they were needed
  float* arena_;
  int64_t batch_;
};

class Step {
 public:
  virtual ~Step() = default;
  virtual void run(Call& call) const = 0;
  virtual std::string describe() const = 0;
};

std::unique_ptr<Step> make_conv2d(StepReader& reader);
std::unique_ptr<Step> make_max_pool2d(StepReader& reader);
std::unique_ptr<Step> make_avg_pool2d(StepReader& reader);
std::unique_ptr<Step> make_adaptive_avg_pool2d(StepReader& reader);
std::unique_ptr<Step> make_linear(StepReader& reader);
std::unique_ptr<Step> make_scale_shift(StepReader& reader);
std::unique_ptr<Step> make_add(StepReader& reader);
std::unique_ptr<Step> make_activation(StepReader& reader);
std::unique_ptr<Step> make_copy(StepReader& reader);
std::unique_ptr<Step> make_scale_images(StepReader& reader);
std::unique_ptr<Step> make_inverted_residual(StepReader& reader);

// output = activation(input * scale + shift + residual) over rows of channels. There need be no scale and shift, and no
// residual (null data); input and residual may be the output.
void apply(int64_t rows, int64_t channels, Rows input, const at::Tensor& scale, const at::Tensor& shift, Rows residual,
           Activation activation, Rows output);
void copy(int64_t rows, int64_t channels, Rows input, Rows output);

// Max pooling of pixels that may lie apart.
class MaxPool2d {
 public:
  explicit MaxPool2d(const Pool2dGeometry& geometry);  // of whatever batch
  void run(int64_t batch, Rows input, Rows output) const;

 private:
  Pool2dGeometry g_;
  std::vector<cpu::PoolWindow> rows_, cols_;
};

// The size of a convolution's output, of an extent that was checked.
int64_t conv2d_out_size(StepReader& r, int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation);
// Whether a second thread would cost more than it gives for so many multiplications.
bool is_serial(double products);

std::string activation_text(Activation activation);  // ", relu", or nothing
std::string shape_text(const Value& value);          // 64 @ 56x56

// What kernels are made ready for, but for the layer itself: another call of the kind runs what was made for this one.
struct CallKind {
  backends::Switches switches;
  int64_t threads;
  cpu::ImageView<float> image;  // where it lies is not looked at
  int64_t residual_pitch;

  static CallKind now(const cpu::ImageView<float>& image, int64_t residual_pitch) {
    return {backends::current(), cpu::num_threads(), image, residual_pitch};
  }
  bool operator==(const CallKind& o) const {
    return residual_pitch == o.residual_pitch && image.batch == o.image.batch && image.stride_n == o.image.stride_n &&
           image.stride_h == o.image.stride_h && image.stride_w == o.image.stride_w &&
           image.stride_c == o.image.stride_c && threads == o.threads && switches == o.switches;
  }
};

// What was made ready for the call before, as calls of one kind follow one another.
template <typename T>
class LastReady {
 public:
  template <typename Make>
  std::shared_ptr<const T> get(const CallKind& kind, const Make& make) const {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (ready_ != nullptr && kind_ == kind) return ready_;
    }
    std::shared_ptr<const T> made = make();
    const std::lock_guard<std::mutex> lock(mutex_);
    kind_ = kind;
    return ready_ = std::move(made);
  }

 private:
  mutable std::mutex mutex_;
  mutable CallKind kind_{};
  mutable std::shared_ptr<const T> ready_;
};

// Operands that are made when kernels first ask for them: once an algorithm and an instruction set.
class Prepared {
 public:
  using Operands = std::vector<at::Tensor>;
  template <typename Make>
  std::shared_ptr<const Operands> get(int algorithm, const Make& make) const {
    const std::pair<int, std::string_view> key{algorithm, cpu::kernels().isa};
    const std::lock_guard<std::mutex> lock(mutex_);
    std::shared_ptr<const Operands>& operands = operands_[key];
    if (operands == nullptr) operands = std::make_shared<const Operands>(make());
    return operands;
  }

 private:
  mutable std::mutex mutex_;
  mutable std::map<std::pair<int, std::string_view>, std::shared_ptr<const Operands>> operands_;
};

}  // namespace fastcnn::plan
