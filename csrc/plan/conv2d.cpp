// Convolutions of a plan: the kernels of conv2d, on weights that are packed or transformed once.
#include "../cpu/conv2d.h"

#include <optional>
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

// A layer's convolutions, made ready for calls of one kind.
struct Ready {
  const char* kernel;
  bool needs_nhwc, serial, max_pools;
  std::shared_ptr<const Prepared::Operands> packed;
  std::vector<std::unique_ptr<const cpu::PreparedConv<float>>> groups;
};

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
  // Whether a kernel leaves the residual, and the activation after it, to a pass of their own.
  bool adds_after(const char* kernel) const { return residual_ >= 0 && (kernel == kDepthwise || kernel == kPlanar); }
  std::shared_ptr<const Ready> make_ready(Call& call, const cpu::ImageView<float>& image, const Rows& residual) const;
  std::unique_ptr<const cpu::PreparedConv<float>> prepare(const char* kernel, Conv2dAlgorithm algorithm,
                                                          const GatherConv<float>& problem) const;

  static constexpr const char *kDepthwise = "conv2d_depthwise", *kPlanar = "conv2d_planar", *kDirect = "conv2d_direct";

  Conv2dGeometry g_;
  int64_t in_, out_, residual_, pooled_;
  at::Tensor weight_, bias_;  // of a depthwise layer its lanes
  Activation activation_;
  bool residual_in_place_;
  std::optional<MaxPool2d> pool_;  // of out_ to pooled_, where that is the step's result
  std::string text_;
  Prepared packed_;
  LastReady<Ready> ready_;
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
  pooled_ = r.write_instead_or_none("pooled", out_);
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
  const int64_t out_h = conv2d_out_size(r, g.in_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h),
                out_w = conv2d_out_size(r, g.in_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  r.check(out.height == out_h && out.width == out_w, "expected an output of ", out_h, " x ", out_w, ", but got value ",
          out_, " of ", out.height, " x ", out.width);
  r.check_overlap(in_, out_, false);
  residual_in_place_ = residual_ >= 0 && same_place(r.value(residual_), out);
  if (residual_ >= 0) r.check_same_shape(residual_, out_), r.check_overlap(residual_, out_, true);
  if (g.depthwise()) weight_ = cpu::depthwise_lanes(weight_);
  if (pooled_ >= 0) {
    const Value& pooled = r.value(pooled_);
    r.check_channels(out_, pooled_), r.check_overlap(in_, pooled_, false);
    r.check(residual_ < 0, "expected no residual where the result is pooled, but got value ", residual_);
    r.check(pooled.height > 0 && pooled.height == out.height / 2 && pooled.width > 0 && pooled.width == out.width / 2,
            "expected half of ", out.height, " x ", out.width, ", but got value ", pooled_, " of ", pooled.height,
            " x ", pooled.width);
    pool_.emplace(
        Pool2dGeometry{1, out.channels, out.height, out.width, pooled.height, pooled.width, 2, 2, 2, 2, 0, 0, 1, 1});
  }

  std::ostringstream text;
  text << "conv2d " << shape_text(in) << " -> " << shape_text(out) << ", " << g.kernel_h << "x" << g.kernel_w;
  if (g.stride_h != 1 || g.stride_w != 1) text << " / " << g.stride_h << "x" << g.stride_w;
  if (g.groups > 1) text << ", " << g.groups << " groups";
  if (residual_ >= 0) text << ", residual";
  text << activation_text(activation_);
  if (pool_) text << ", max_pool2d -> " << shape_text(r.value(pooled_));
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

std::shared_ptr<const Ready> Conv2dStep::make_ready(Call& call, const cpu::ImageView<float>& image,
                                                    const Rows& residual) const {
  const Conv2dGeometry g = of_batch(call.batch());
  const Conv2dAlgorithm chosen = algorithm(g);
  const auto size = cpu::winograd_size(chosen);
  const auto made = std::make_shared<Ready>();
  made->needs_nhwc = g.depthwise() || size.has_value();
  const Rows out = call.rows(out_);
  std::vector<GatherConv<float>> problems = cpu::forward_problems<float>(
      g, made->needs_nhwc ? call.nhwc(in_) : image, weight_, bias_.defined() ? bias_.const_data_ptr<float>() : nullptr,
      activation_, out.data, out.pitch);
  made->kernel = kernel(chosen, problems[0]);
  made->max_pools = pool_ && size && cpu::is_rectifier(activation_);
  for (GatherConv<float>& p : problems) {
    if (adds_after(made->kernel)) {
      p.activation = Activation::none;
      // Where the sums of a residual in place go.
      if (residual_in_place_) p.out_stride_w = g.out_channels;
      p.out_stride_h = g.out_w * p.out_stride_w, p.out_stride_n = g.out_h * p.out_stride_h;
    } else if (residual_ >= 0) {
      p.residual = residual.data;
      p.residual_stride_w = residual.pitch, p.residual_stride_h = g.out_w * residual.pitch;
      p.residual_stride_n = g.out_h * p.residual_stride_h;
    }
    if (made->max_pools) {
      p.max_pools = true, p.out_stride_w = call.rows(pooled_).pitch;
      p.out_stride_h = g.out_w / 2 * p.out_stride_w, p.out_stride_n = g.out_h / 2 * p.out_stride_h;
    }
  }
  if (size || made->kernel == kDirect) {
    made->packed = packed_.get(static_cast<int>(chosen), [&] {
      Prepared::Operands operands;
      for (const GatherConv<float>& p : problems)
        operands.push_back(size ? cpu::conv2d_winograd_weight(p, *size) : cpu::conv2d_direct_weight(p));
      return operands;
    });
    for (size_t i = 0; i < problems.size(); ++i) problems[i].packed = (*made->packed)[i].const_data_ptr<float>();
  }
  const double products = static_cast<double>(g.batch * g.out_h * g.out_w * g.out_channels) *
                          static_cast<double>(g.group_in() * g.kernel_h * g.kernel_w);
  made->serial = is_serial(products);
  const cpu::SerialScope scope(made->serial);
  for (const GatherConv<float>& p : problems) made->groups.push_back(prepare(made->kernel, chosen, p));
  return made;
}

std::unique_ptr<const cpu::PreparedConv<float>> Conv2dStep::prepare(const char* kernel, Conv2dAlgorithm algorithm,
                                                                    const GatherConv<float>& problem) const {
  if (const auto size = cpu::winograd_size(algorithm)) return cpu::prepare_conv2d_winograd(problem, *size);
  if (kernel == kDepthwise) return cpu::prepare_conv2d_depthwise(problem);
  return kernel == kPlanar ? cpu::prepare_conv2d_planar(problem) : cpu::prepare_conv2d_direct(problem);
}

void Conv2dStep::run(Call& call) const {
  const Rows out = call.rows(out_), residual = residual_ >= 0 ? call.rows(residual_) : Rows{nullptr, 0};
  const cpu::ImageView<float> given = call.image(in_);
  const std::shared_ptr<const Ready> r =
      ready_.get(CallKind::now(given, residual.pitch), [&] { return make_ready(call, given, residual); });
  const cpu::ImageView<float> image = r->needs_nhwc ? call.nhwc(in_) : given;
  const int64_t pixels = call.pixels(out_), groups = static_cast<int64_t>(r->groups.size());
  const bool adds = adds_after(r->kernel);

  // 1. The convolution; where its kernel adds no residual, without the activation after that.
  Rows sums = r->max_pools ? call.rows(pooled_) : out;
  at::Tensor aside;
  if (adds && residual_in_place_) {
    aside = cpu::empty({pixels, g_.out_channels}, at::device(at::kCPU).dtype(at::kFloat));
    sums = {aside.mutable_data_ptr<float>(), g_.out_channels};
  }
  backends::record_kernel(r->kernel);
  {
    const cpu::SerialScope scope(r->serial);
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t lane = g_.out_channels / groups * group;
      r->groups[group]->run({image.data + g_.in_channels / groups * group * image.stride_c, sums.data + lane,
                             residual_ >= 0 ? residual.data + lane : nullptr});
    }
  }

  // 2. What the kernel has not done.
  if (adds) apply(pixels, g_.out_channels, sums, {}, {}, residual, activation_, out);
  if (pool_ && !r->max_pools) pool_->run(call.batch(), out, call.rows(pooled_));
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

int64_t conv2d_out_size(StepReader& r, int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  r.check(kernel - 1 <= kMostPadding / dilation, "expected a kernel's extent of at most ", kMostPadding,
          ", but got kernel ", kernel, " with dilation ", dilation);
  return conv_out_size(in, kernel, stride, pad, dilation);
}

bool is_serial(double products) { return products * 16 < kSerialProducts * cpu::kernels().f32.width; }

std::unique_ptr<Step> make_conv2d(StepReader& reader) { return std::make_unique<Conv2dStep>(reader); }

}  // namespace fastcnn::plan
