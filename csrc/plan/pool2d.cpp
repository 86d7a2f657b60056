// Pooling in a plan: the kernels of the pooling ops, on pixels that may lie apart.
#include "steps.h"

namespace fastcnn::plan {
namespace {

using cpu::PoolWindow;

// The windows' fields of a record, checked against the sizes of both values.
Pool2dGeometry read_geometry(StepReader& r, int64_t in_number, int64_t out_number, bool dilates) {
  const Value &in = r.value(in_number), &out = r.value(out_number);
  Pool2dGeometry g{};
  g.channels = in.channels, g.in_h = in.height, g.in_w = in.width, g.out_h = out.height, g.out_w = out.width;
  g.kernel_h = r.size("kernel_h"), g.kernel_w = r.size("kernel_w");
  g.stride_h = r.size("stride_h"), g.stride_w = r.size("stride_w");
  g.pad_h = r.number("pad_h", 0, g.kernel_h / 2), g.pad_w = r.number("pad_w", 0, g.kernel_w / 2);
  g.dilation_h = dilates ? r.size("dilation_h") : 1, g.dilation_w = dilates ? r.size("dilation_w") : 1;
  const bool ceil_mode = r.flag("ceil_mode");
  r.check(g.kernel_h - 1 <= kMostPadding / g.dilation_h && g.kernel_w - 1 <= kMostPadding / g.dilation_w,
          "expected a window's extent of at most ", kMostPadding, ", but got kernel ", g.kernel_h, " x ", g.kernel_w,
          " with dilation ", g.dilation_h, " x ", g.dilation_w);
  const int64_t out_h = pool_out_size(g.in_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h, ceil_mode);
  const int64_t out_w = pool_out_size(g.in_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w, ceil_mode);
  r.check(out_h == g.out_h && out_w == g.out_w, "expected an output of ", out_h, " x ", out_w, ", but got value ",
          out_number, " of ", g.out_h, " x ", g.out_w);
  r.check_channels(in_number, out_number);
  r.check_overlap(in_number, out_number, false);
  return g;
}

std::string text_of(const char* name, StepReader& r, int64_t in, int64_t out, const Pool2dGeometry& g) {
  return std::string(name) + " " + shape_text(r.value(in)) + " -> " + shape_text(r.value(out)) + ", " +
         std::to_string(g.kernel_h) + "x" + std::to_string(g.kernel_w) + ": " + name;
}

class MaxPool2dStep final : public Step {
 public:
  explicit MaxPool2dStep(StepReader& r)
      : in_(r.read("in")), out_(r.write("out")), g_(read_geometry(r, in_, out_, true)), pool_(g_) {
    r.done();
    text_ = text_of("max_pool2d", r, in_, out_, g_);
  }

  void run(Call& call) const override { pool_.run(call.batch(), call.rows(in_), call.rows(out_)); }
  std::string describe() const override { return text_; }

 private:
  int64_t in_, out_;
  Pool2dGeometry g_;
  MaxPool2d pool_;
  std::string text_;
};

// Regular and adaptive.
class AvgPool2dStep final : public Step {
 public:
  AvgPool2dStep(StepReader& r, bool adaptive) : in_(r.read("in")), out_(r.write("out")) {
    const Value &in = r.value(in_), &out = r.value(out_);
    if (adaptive) {
      r.check_channels(in_, out_);
      r.check_overlap(in_, out_, false);
      rows_ = cpu::adaptive_windows(in.height, out.height), cols_ = cpu::adaptive_windows(in.width, out.width);
      text_ = "adaptive_avg_pool2d " + shape_text(in) + " -> " + shape_text(out) + ": avg_pool2d";
    } else {
      const Pool2dGeometry g = read_geometry(r, in_, out_, false);
      const bool count_include_pad = r.flag("count_include_pad");
      const int64_t divisor = r.number("divisor", -kMostPadding, kMostPadding);
      rows_ = cpu::pool_windows(g.in_h, g.out_h, g.kernel_h, g.stride_h, g.pad_h, 1, count_include_pad);
      cols_ = cpu::pool_windows(g.in_w, g.out_w, g.kernel_w, g.stride_w, g.pad_w, 1, count_include_pad);
      if (divisor != 0) {
        for (PoolWindow& row : rows_) row.divisor = divisor;
        for (PoolWindow& col : cols_) col.divisor = 1;
      }
      text_ = text_of("avg_pool2d", r, in_, out_, g);
    }
    r.done();
    channels_ = in.channels, in_h_ = in.height, in_w_ = in.width, out_h_ = out.height, out_w_ = out.width;
  }

  void run(Call& call) const override {
    backends::record_kernel("avg_pool2d");
    const Rows in = call.rows(in_), out = call.rows(out_);
    const cpu::AvgPool2dArgs<float> args{
        in.data,   in.pitch, out.data, out.pitch, rows_.data(), cols_.data(),
        channels_, in_h_,    in_w_,    out_h_,    out_w_,       in_w_ / out_w_ * in.pitch,
        0,         0};
    cpu::over_rows(args, call.batch() * out_h_, in_h_ * in_w_ * channels_ / out_h_, cpu::kernels().f32.avg_pool2d);
  }
  std::string describe() const override { return text_; }

 private:
  int64_t in_, out_, channels_, in_h_, in_w_, out_h_, out_w_;
  std::vector<PoolWindow> rows_, cols_;
  std::string text_;
};

}  // namespace

MaxPool2d::MaxPool2d(const Pool2dGeometry& g)
    : g_(g),
      rows_(cpu::pool_windows(g.in_h, g.out_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h, false)),
      cols_(cpu::pool_windows(g.in_w, g.out_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w, false)) {}

void MaxPool2d::run(int64_t batch, Rows in, Rows out) const {
  backends::record_kernel("max_pool2d");
  const cpu::MaxPool2dArgs<float> args{in.data,
                                       in.pitch,
                                       out.data,
                                       out.pitch,
                                       nullptr,
                                       nullptr,
                                       rows_.data(),
                                       cols_.data(),
                                       g_.channels,
                                       g_.in_h,
                                       g_.in_w,
                                       g_.out_h,
                                       g_.out_w,
                                       g_.kernel_w,
                                       g_.dilation_h,
                                       g_.dilation_w,
                                       g_.stride_w * in.pitch,
                                       0,
                                       0};
  cpu::over_rows(args, batch * g_.out_h, g_.in_h * g_.in_w * g_.channels / g_.out_h, cpu::kernels().f32.max_pool2d);
}

std::unique_ptr<Step> make_max_pool2d(StepReader& reader) { return std::make_unique<MaxPool2dStep>(reader); }
std::unique_ptr<Step> make_avg_pool2d(StepReader& reader) { return std::make_unique<AvgPool2dStep>(reader, false); }
std::unique_ptr<Step> make_adaptive_avg_pool2d(StepReader& reader) {
  return std::make_unique<AvgPool2dStep>(reader, true);
}

}  // namespace fastcnn::plan
