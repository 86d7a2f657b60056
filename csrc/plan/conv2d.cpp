// Convolutions of a plan: the kernels of conv2d, on weights that are packed or transformed once.
#include "../cpu/conv2d.h"

#include <sstream>

#include "../cpu/conv2d_choice.h"
#include "../cpu/memory.h"
#include "../cpu/parallel.h"
#include "steps.h"

namespace fastcnn::plan {
namespace {

using cpu::GatherConv;

// Multiplications, by registers of 16 lanes, below which a second thread costs more than it gives: some 20 us.
constexpr double kSerialProducts = 1e6;

class Conv2dStep final : public Step {
 public:
  explicit Conv2dStep(StepReader& r);
  void run(Call& call) const override;
  std::string describe() const override;

 private:
  Conv2dGeometry of_batch(int64_t batch) const {
    Conv2dGeometry g = g_;
    g.batch = batch;
    return g;
  }
  // As the op chooses it among our own, the switches in force.
  Conv2dAlgorithm algorithm(const Conv2dGeometry& g) const;
  // The kernel's name. `problems` are the layer's by that algorithm.
  const char* kernel(Conv2dAlgorithm algorithm, const GatherConv<float>& problem) const;
  bool fuses_residual(const char* kernel) const { return kernel != kDepthwise && kernel != kPlanar; }
  void run_kernel(const char* kernel, Conv2dAlgorithm algorithm, std::vector<GatherConv<float>>& problems) const;

  static constexpr const char *kDepthwise = "conv2d_depthwise", *kPlanar = "conv2d_planar", *kDirect = "conv2d_direct";

  Conv2dGeometry g_;
  int64_t in_, out_, residual_;
  at::Tensor weight_, bias_;  // of a depthwise layer its lanes
  Activation activation_;
  bool residual_in_place_;
  std::string text_;
  Prepared packed_;
};

Conv2dStep::Conv2dStep(StepReader& r) {
  in_ = r.read("in"), out_ = r.write("out");
  weight_ = r.constant("weight"), bias_ = r.constant_or_none("bias");
  residual_ = r.read_or_none("residual");
  activation_ = r.activation();
  const Value &in = r.value(in_), &out = r.value(out_);
  Conv2dGeometry& g = g_ = {};
  g.batch = 1, g.in_channels = in.channels, g.in_h = in.height, g.in_w = in.width;
  g.out_channels = out.channels, g.out_h = out.height, g.out_w = out.width;
  g.stride_h = r.size("stride_h"), g.stride_w = r.size("stride_w");
  g.pad_h = r.number("pad_h", 0, kMostPadding), g.pad_w = r.number("pad_w", 0, kMostPadding);
  g.dilation_h = r.size("dilation_h"), g.dilation_w = r.size("dilation_w"), g.groups = r.size("groups");
  r.done();
  const int64_t padded = (g.in_h + 2 * g.pad_h) * (g.in_w + 2 * g.pad_w);
  r.check(padded <= kMostFloats / g.in_channels, "expected at most ", kMostFloats, " floats an image, but got ",
          g.in_channels, " channels of ", g.in_h, " x ", g.in_w, " with padding ", g.pad_h, " and ", g.pad_w);
  r.check(g.in_channels % g.groups == 0 && g.out_channels % g.groups == 0, "expected channels that are multiples of ",
          "groups=", g.groups, ", but got ", g.in_channels, " and ", g.out_channels);
  r.check(weight_.dim() == 4 && weight_.numel() > 0, "expected weight of four dimensions, but got size ",
          weight_.sizes());
  g.kernel_h = weight_.size(2), g.kernel_w = weight_.size(3);
  r.check_sizes("weight", weight_, {g.out_channels, g.group_in(), g.kernel_h, g.kernel_w});
  r.check_sizes("bias", bias_, {g.out_channels});
  const auto out_size = [&](int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    r.check(kernel - 1 <= kMostPadding / dilation, "expected a kernel's extent of at most ", kMostPadding,
            ", but got kernel ", kernel, " with dilation ", dilation);
    return conv_out_size(in, kernel, stride, pad, dilation);
  };
  const int64_t out_h = out_size(g.in_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h),
                out_w = out_size(g.in_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  r.check(out.height == out_h && out.width == out_w, "expected an output of ", out_h, " x ", out_w, ", but got value ",
          out_, " of ", out.height, " x ", out.width);
  r.check_overlap(in_, out_, false);
  residual_in_place_ = residual_ >= 0 && same_place(r.value(residual_), out);
  if (residual_ >= 0) r.check_same_shape(residual_, out_), r.check_overlap(residual_, out_, true);
  if (g.depthwise()) weight_ = cpu::depthwise_lanes(weight_);

  std::ostringstream text;
  text << "conv2d " << shape_text(in) << " -> " << shape_text(out) << ", " << g.kernel_h << "x" << g.kernel_w;
  if (g.stride_h != 1 || g.stride_w != 1) text << " / " << g.stride_h << "x" << g.stride_w;
  if (g.groups > 1) text << ", " << g.groups << " groups";
  if (residual_ >= 0) text << ", residual";
  text << activation_text(activation_);
  text_ = text.str();
}

Conv2dAlgorithm Conv2dStep::algorithm(const Conv2dGeometry& g) const {
  if (g.depthwise()) return Conv2dAlgorithm::direct;
  backends::Switches switches = backends::current();
  switches.fallback = false;
  const backends::Guard guard(switches);
  const Conv2dAlgorithm chosen = cpu::choose_conv2d(cpu::Conv2dPass::forward, g, at::kFloat, /*packed=*/true);
  return chosen == Conv2dAlgorithm::aten ? Conv2dAlgorithm::direct : chosen;
}

const char* Conv2dStep::kernel(Conv2dAlgorithm algorithm, const GatherConv<float>& problem) const {
  if (g_.depthwise()) return kDepthwise;
  if (cpu::winograd_size(algorithm)) return algorithm_name(algorithm);
  return cpu::conv2d_planar_applies(problem) ? kPlanar : kDirect;
}

void Conv2dStep::run_kernel(const char* kernel, Conv2dAlgorithm algorithm,
                            std::vector<GatherConv<float>>& problems) const {
  backends::record_kernel(kernel);
  const auto size = cpu::winograd_size(algorithm);
  std::shared_ptr<const Prepared::Operands> packed;
  if (size || kernel == kDirect) {
    packed = packed_.get(static_cast<int>(algorithm), [&] {
      Prepared::Operands operands;
      for (const GatherConv<float>& p : problems)
        operands.push_back(size ? cpu::conv2d_winograd_weight(p, *size) : cpu::conv2d_direct_weight(p));
      return operands;
    });
    for (size_t i = 0; i < problems.size(); ++i) problems[i].packed = (*packed)[i].const_data_ptr<float>();
  }
  const double products = static_cast<double>(problems[0].image.batch * g_.out_h * g_.out_w * g_.out_channels) *
                          static_cast<double>(g_.group_in() * g_.kernel_h * g_.kernel_w);
  const cpu::SerialScope scope(products * 16 < kSerialProducts * cpu::kernels().f32.width);
  if (size) {
    conv2d_winograd(problems, *size);
  } else if (kernel == kDepthwise) {
    conv2d_depthwise(problems);
  } else if (kernel == kDirect) {
    conv2d_direct(problems);
  } else {
    for (const GatherConv<float>& p : problems) conv2d_planar(p);
  }
}

void Conv2dStep::run(Call& call) const {
  const Conv2dGeometry g = of_batch(call.batch());
  const Conv2dAlgorithm chosen = algorithm(g);
  const bool needs_nhwc = g.depthwise() || cpu::winograd_size(chosen).has_value();
  const Rows out = call.rows(out_), residual = residual_ >= 0 ? call.rows(residual_) : Rows{nullptr, 0};
  std::vector<GatherConv<float>> problems = cpu::forward_problems<float>(
      g, needs_nhwc ? call.nhwc(in_) : call.image(in_), weight_,
      bias_.defined() ? bias_.const_data_ptr<float>() : nullptr, fused(activation_), out.data, out.pitch);
  const char* name = kernel(chosen, problems[0]);
  const int64_t pixels = call.pixels(out_);

  // 1. The convolution; where its kernel adds no residual, without the activation after that.
  const bool adds_after = residual_ >= 0 && !fuses_residual(name);
  Rows sums = out;
  at::Tensor aside;
  if (adds_after && residual_in_place_) {
    aside = cpu::empty({pixels, g.out_channels}, at::device(at::kCPU).dtype(at::kFloat));
    sums = {aside.mutable_data_ptr<float>(), g.out_channels};
  }
  for (size_t group = 0; group < problems.size(); ++group) {
    GatherConv<float>& p = problems[group];
    const int64_t lane = static_cast<int64_t>(group) * p.lanes;
    p.output = sums.data + lane;
    p.out_stride_w = sums.pitch, p.out_stride_h = g.out_w * sums.pitch, p.out_stride_n = g.out_h * p.out_stride_h;
    if (adds_after) p.activation = Activation::none;
    if (residual_ < 0 || adds_after) continue;
    p.residual = residual.data + lane;
    p.residual_stride_w = residual.pitch, p.residual_stride_h = g.out_w * residual.pitch;
    p.residual_stride_n = g.out_h * p.residual_stride_h;
  }
  run_kernel(name, chosen, problems);

  // 2. What the kernel has not done.
  if (adds_after || fused(activation_) != activation_)
    apply(pixels, g.out_channels, sums, {}, {}, adds_after ? residual : Rows{nullptr, 0}, activation_, out);
}

std::string Conv2dStep::describe() const {
  std::ostringstream text;
  text << text_ << ": ";
  for (const int64_t batch : {1, 32}) {
    const Conv2dGeometry g = of_batch(batch);
    const cpu::ImageView<float> image{nullptr, batch, g.in_h, g.in_w, g.in_channels, 0, 0, 0, 1};
    const auto problems = cpu::forward_problems<float>(g, image, weight_, nullptr, Activation::none, nullptr, 0);
    text << (batch > 1 ? ", " : "") << kernel(algorithm(g), problems[0]) << " at batch " << batch;
  }
  return text.str();
}

}  // namespace

std::unique_ptr<Step> make_conv2d(StepReader& reader) { return std::make_unique<Conv2dStep>(reader); }

}  // namespace fastcnn::plan
