// Linear layers of a plan. One image reads the weights once, as they are; a batch is a convolution of one tap over as
// many pixels, on weights packed for the direct kernel.
#include "../cpu/conv2d.h"
#include "../cpu/memory.h"
#include "../cpu/parallel.h"
#include "steps.h"

namespace fastcnn::plan {
namespace {

constexpr int64_t kRows = 8;  // outputs of one task: what the kernel reads side by side
// Weights of a thread's share at least: at 15 GB/s a thread some 20 us.
constexpr int64_t kGrainWeights = 64 * 1024;
// A batch's products with this many inputs are added up at a time: 64 outputs' weights of as many stay in a
// second-level cache of 1 MB, where the next images find them.
constexpr int64_t kPartLength = 2048;

class LinearStep final : public Step {
 public:
  explicit LinearStep(StepReader& r) {
    in_ = r.read("in"), out_ = r.write("out");
    weight_ = r.constant("weight"), bias_ = r.constant_or_none("bias"), activation_ = r.activation();
    r.done();
    const Value &in = r.value(in_), &out = r.value(out_);
    r.check(out.pixels() == 1, "expected an output of one pixel, but got value ", out_, " of ", out.height, " x ",
            out.width);
    channels_ = in.channels, pixels_ = in.pixels(), length_ = pixels_ * channels_, outputs_ = out.channels;
    r.check_sizes("weight", weight_, {outputs_, length_});
    r.check_sizes("bias", bias_, {outputs_});
    r.check_overlap(in_, out_, false);
    text_ = "linear " + std::to_string(length_) + " -> " + std::to_string(outputs_) + activation_text(activation_) +
            ": linear at batch 1, else conv2d_direct";
  }

  void run(Call& call) const override {
    Rows in = call.rows(in_);
    const Rows out = call.rows(out_);
    at::Tensor dense;
    if (pixels_ > 1 && in.pitch != channels_) {
      dense = cpu::empty({call.batch(), length_}, weight_.options());
      const Rows target{dense.mutable_data_ptr<float>(), channels_};
      copy(call.pixels(in_), channels_, in, target);
      in = target;
    }
    const int64_t stride = pixels_ * in.pitch;
    // The two ways add in different orders.
    const bool alone = call.batch() == 1 && !backends::current().batch_invariant;
    alone ? run_image(in.data, out.data) : run_batch(call.batch(), in.data, stride, out);
  }

  std::string describe() const override { return text_; }

 private:
  const float* bias_data() const { return bias_.defined() ? bias_.const_data_ptr<float>() : nullptr; }

  void run_image(const float* input, float* output) const {
    backends::record_kernel("linear");
    const float *weight = weight_.const_data_ptr<float>(), *bias = bias_data();
    const int64_t grain = std::max<int64_t>(1, kGrainWeights / (kRows * length_));
    cpu::parallel_for(0, ceil_div(outputs_, kRows), grain, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kRows, count = std::min(end * kRows, outputs_) - first;
      cpu::kernels().f32.linear({input, weight + first * length_, bias != nullptr ? bias + first : nullptr,
                                 output + first, count, length_, activation_});
    });
  }

  // The products with inputs [begin, end), of images that are a column of pixels.
  cpu::GatherConv<float> part(int64_t begin, int64_t end, int64_t batch, const float* input, int64_t stride,
                              Rows output) const {
    cpu::GatherConv<float> p{};
    p.image = {input + begin, 1, batch, 1, end - begin, 0, stride, 0, 1};
    p.grid = {batch, 1, 1, 1, {{0, 0, 0}}};
    p.weight = weight_.const_data_ptr<float>() + begin, p.depth_stride = 1, p.lane_stride = length_;
    p.lanes = outputs_;
    p.bias = begin == 0 ? bias_data() : nullptr;
    p.activation = end == length_ ? activation_ : Activation::none;
    p.output = output.data, p.out_stride_h = output.pitch;
    if (begin > 0) p.residual = output.data, p.residual_stride_h = output.pitch;
    return p;
  }

  void run_batch(int64_t batch, const float* input, int64_t stride, Rows output) const {
    backends::record_kernel("conv2d_direct");
    std::vector<cpu::GatherConv<float>> parts;
    for (int64_t begin = 0; begin < length_; begin += kPartLength)
      parts.push_back(part(begin, std::min(begin + kPartLength, length_), batch, input, stride, output));
    const auto packed = packed_.get(0, [&] {
      Prepared::Operands operands;
      for (const cpu::GatherConv<float>& p : parts) operands.push_back(cpu::conv2d_direct_weight(p));
      return operands;
    });
    for (size_t i = 0; i < parts.size(); ++i) parts[i].packed = (*packed)[i].const_data_ptr<float>();
    const cpu::SerialScope scope(length_ * outputs_ < 2 * kGrainWeights && batch * length_ * outputs_ < 1'000'000);
    conv2d_direct(parts);
  }

  int64_t in_, out_, channels_, pixels_, length_, outputs_;
  at::Tensor weight_, bias_;
  Activation activation_;
  std::string text_;
  Prepared packed_;
};

}  // namespace

std::unique_ptr<Step> make_linear(StepReader& reader) { return std::make_unique<LinearStep>(reader); }

}  // namespace fastcnn::plan
