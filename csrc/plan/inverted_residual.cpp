// A depthwise convolution between two of 1x1, of which one may be missing: MobileNetV2's inverted residual (Sandler et
// al., 2018). The layers run by bands of rows, whose expanded channels stay in cache.
#include <cstring>
#include <map>
#include <sstream>
#include <tuple>

#include "../cpu/memory.h"
#include "steps.h"

namespace fastcnn::plan {
namespace {

using cpu::GatherConv;
using Conv = cpu::PreparedConv<float>;

// What the depthwise layer reads and writes for a band, in bytes: half of a 1 MB second-level cache.
constexpr int64_t kBandBytes = 512 * 1024;
constexpr int64_t kManyBands = 4;   // for a thread, from where on it does not matter whether one has one more
constexpr int64_t kMostForms = 64;  // of bands that are prepared; real networks have five
constexpr int64_t kLine = 16;       // floats

// One layer's operands.
struct Layer {
  at::Tensor weight, bias;
  Activation activation;

  bool defined() const { return weight.defined(); }
  const float* bias_data() const { return bias.defined() ? bias.const_data_ptr<float>() : nullptr; }
};

// Rows [first, last) of the depthwise layer's result, and those that it reads, [top, bottom).
struct Extent {
  int64_t first, last, top, bottom;
};

struct Band : Extent {
  int64_t kept;            // of the rows that it reads, those that the band before has left
  const Conv *all, *rest;  // expands the rows that it reads, or those that are not kept
  const Conv *filter, *project;
};

// The layers, made ready for calls of one kind.
struct Ready {
  bool serial;               // no threads at all
  bool side_by_side;         // each slot's layers in one thread; else a layer over all threads, after the other
  int64_t slots;             // that share the bands of all images
  int64_t expanded, floats;  // of a slot's memory: what lies before the filtered rows, and in all
  std::vector<Band> bands;   // of an image
  std::shared_ptr<const Prepared::Operands> packed;
  std::map<int64_t, std::unique_ptr<const Conv>> expands, projects;  // by rows
  std::map<std::tuple<int64_t, int64_t, int64_t>, std::unique_ptr<const Conv>>
      filters;  // by rows read and made, padding
};

class InvertedResidualStep final : public Step {
 public:
  explicit InvertedResidualStep(StepReader& r);
  void run(Call& call) const override;
  std::string describe() const override;

 private:
  // Where a call's images, residuals and results lie.
  struct Data {
    cpu::ImageView<float> image;
    Rows residual, out;
  };

  // Floats of a row of what the depthwise layer reads and writes, where that is the step's own.
  int64_t expanded_row() const { return expand_.defined() ? g_.in_w * g_.in_channels : 0; }
  int64_t filtered_row() const { return project_.defined() ? g_.out_w * g_.in_channels : 0; }
  int64_t reach() const { return (g_.kernel_h - 1) * g_.dilation_h + 1; }
  int64_t rows_in_cache() const;
  double products(int64_t batch) const;
  Extent rows_for(int64_t first, int64_t last) const;
  std::shared_ptr<const Ready> make_ready(const Data& data) const;
  void cut(int64_t batch, Ready& made) const;
  const Conv* expand(int64_t rows, const Data& data, Ready& made) const;
  const Conv* filter(const Band& band, const Data& data, Ready& made) const;
  const Conv* project(int64_t rows, const Data& data, Ready& made) const;
  std::unique_ptr<const Conv> prepare_1x1(const Layer& layer, const cpu::ImageView<float>& image, Rows out,
                                          Rows residual, const at::Tensor& packed) const;
  // Rows of what lies between the layers.
  cpu::ImageView<float> dense(int64_t height, int64_t width) const {
    const int64_t c = g_.in_channels;
    return {nullptr, 1, height, width, c, height * width * c, width * c, c, 1};
  }
  // Bands [begin, end) of all images, in order.
  void run_bands(const Ready& ready, const Data& data, int64_t begin, int64_t end, float* memory) const;

  Layer expand_, filter_, project_;
  Conv2dGeometry g_;  // the depthwise layer's
  int64_t in_, out_, residual_;
  std::string text_;
  Prepared packed_;
  LastReady<Ready> ready_;
};

Conv2dGeometry geometry_1x1(const Layer& layer, int64_t height, int64_t width) {
  return {1, layer.weight.size(1), height, width, layer.weight.size(0), height, width, 1, 1, 1, 1, 0, 0, 1, 1, 1};
}

// The weights of a 1x1 layer in the order that kernels read them in.
at::Tensor pack(const Layer& layer) {
  if (!layer.defined()) return {};
  const Conv2dGeometry g = geometry_1x1(layer, 1, 1);
  return cpu::conv2d_direct_weight(cpu::forward_problems<float>(
      g, {nullptr, 1, 1, 1, g.in_channels, 0, 0, 0, 1}, layer.weight, nullptr, Activation::none, nullptr, 0)[0]);
}

Layer read_layer(StepReader& r, const char* weight, const char* bias) {
  Layer layer;
  layer.weight = r.constant_or_none(weight), layer.bias = r.constant_or_none(bias), layer.activation = r.activation();
  r.check(layer.defined() || (!layer.bias.defined() && layer.activation == Activation::none), "expected neither ", bias,
          " nor activation without ", weight);
  return layer;
}

InvertedResidualStep::InvertedResidualStep(StepReader& r) {
  in_ = r.read("in"), out_ = r.write("out"), residual_ = r.read_or_none("residual");
  expand_ = read_layer(r, "expand_weight", "expand_bias");
  filter_ = read_layer(r, "weight", "bias");
  const Value &in = r.value(in_), &out = r.value(out_);
  Conv2dGeometry& g = g_ = {};
  g.batch = 1, g.in_h = in.height, g.in_w = in.width, g.out_h = out.height, g.out_w = out.width;
  g.stride_h = r.size("stride_h"), g.stride_w = r.size("stride_w");
  g.pad_h = r.number("pad_h", 0, kMostPadding), g.pad_w = r.number("pad_w", 0, kMostPadding);
  g.dilation_h = r.size("dilation_h"), g.dilation_w = r.size("dilation_w");
  project_ = read_layer(r, "project_weight", "project_bias");
  r.done();
  r.check(filter_.defined() && filter_.weight.dim() == 4 && filter_.weight.numel() > 0,
          "expected weight of four dimensions, but got ", filter_.defined() ? "one of another form" : "none");
  r.check(expand_.defined() || project_.defined(), "expected expand_weight or project_weight, but got neither");
  const int64_t channels = filter_.weight.size(0);
  g.in_channels = g.out_channels = g.groups = channels;
  g.kernel_h = filter_.weight.size(2), g.kernel_w = filter_.weight.size(3);
  r.check(channels > 1, "expected several channels between the layers, but got ", channels);
  r.check(expand_.defined() || in.channels == channels, "expected ", channels, " channels, but got value ", in_, " of ",
          in.channels);
  r.check(project_.defined() || out.channels == channels, "expected ", channels, " channels, but got value ", out_,
          " of ", out.channels);
  r.check(residual_ < 0 || project_.defined(), "expected no residual without project_weight, but got value ",
          residual_);
  r.check_sizes("weight", filter_.weight, {channels, 1, g.kernel_h, g.kernel_w});
  r.check_sizes("bias", filter_.bias, {channels});
  r.check_sizes("expand_weight", expand_.weight, {channels, in.channels, 1, 1});
  r.check_sizes("expand_bias", expand_.bias, {channels});
  r.check_sizes("project_weight", project_.weight, {out.channels, channels, 1, 1});
  r.check_sizes("project_bias", project_.bias, {out.channels});
  const int64_t out_h = conv2d_out_size(r, g.in_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h),
                out_w = conv2d_out_size(r, g.in_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  r.check(out.height == out_h && out.width == out_w, "expected an output of ", out_h, " x ", out_w, ", but got value ",
          out_, " of ", out.height, " x ", out.width);
  r.check(g.pad_h < reach(), "expected windows that reach into the image, but got padding ", g.pad_h,
          " for a kernel of ", g.kernel_h, " with dilation ", g.dilation_h);
  r.check(in.pixels() <= kMostFloats / channels && out.pixels() <= kMostFloats / channels, "expected at most ",
          kMostFloats, " floats an image, but got ", channels, " channels of ", in.height, " x ", in.width);
  r.check_overlap(in_, out_, false);
  if (residual_ >= 0) r.check_same_shape(residual_, out_), r.check_overlap(residual_, out_, true);
  filter_.weight = cpu::depthwise_lanes(filter_.weight);

  std::ostringstream text;
  text << "inverted_residual " << shape_text(in) << " -> " << channels << " -> " << shape_text(out) << ", "
       << g.kernel_h << "x" << g.kernel_w;
  if (g.stride_h != 1 || g.stride_w != 1) text << " / " << g.stride_h << "x" << g.stride_w;
  if (!expand_.defined()) text << ", no expansion";
  if (!project_.defined()) text << ", no projection";
  if (residual_ >= 0) text << ", residual";
  text << activation_text(filter_.activation);
  text_ = text.str();
}

int64_t InvertedResidualStep::rows_in_cache() const {
  // No more than the image has, so that the products fit.
  const int64_t window = std::min(reach(), g_.in_h), step = std::min(g_.stride_h, g_.in_h);
  const int64_t room = kBandBytes / static_cast<int64_t>(sizeof(float)) - (window - step) * expanded_row();
  const int64_t rows = std::clamp<int64_t>(room / (step * expanded_row() + filtered_row()), 1, g_.out_h);
  // Each band whose windows reach out of the image is a form of its own.
  return 2 * g_.pad_h / (g_.stride_h * rows) < kMostForms ? rows : g_.out_h;
}

double InvertedResidualStep::products(int64_t batch) const {
  const double read = static_cast<double>(g_.in_h * g_.in_w), made = static_cast<double>(g_.out_h * g_.out_w);
  double of_channel = made * static_cast<double>(g_.kernel_h * g_.kernel_w);
  if (expand_.defined()) of_channel += read * static_cast<double>(expand_.weight.size(1));
  if (project_.defined()) of_channel += made * static_cast<double>(project_.weight.size(0));
  return static_cast<double>(batch * g_.in_channels) * of_channel;
}

Extent InvertedResidualStep::rows_for(int64_t first, int64_t last) const {
  const int64_t top = std::clamp<int64_t>(first * g_.stride_h - g_.pad_h, 0, g_.in_h - 1);
  return {first, last, top, std::clamp((last - 1) * g_.stride_h - g_.pad_h + reach(), top + 1, g_.in_h)};
}

std::unique_ptr<const Conv> InvertedResidualStep::prepare_1x1(const Layer& layer, const cpu::ImageView<float>& image,
                                                              Rows out, Rows residual, const at::Tensor& packed) const {
  GatherConv<float> p =
      cpu::forward_problems<float>(geometry_1x1(layer, image.height, image.width), image, layer.weight,
                                   layer.bias_data(), layer.activation, out.data, out.pitch)[0];
  p.packed = packed.const_data_ptr<float>();
  if (residual.data != nullptr) {
    p.residual = residual.data;
    p.residual_stride_w = residual.pitch, p.residual_stride_h = image.width * residual.pitch;
    p.residual_stride_n = image.height * p.residual_stride_h;
  }
  return cpu::prepare_conv2d_direct(p);
}

std::shared_ptr<const Ready> InvertedResidualStep::make_ready(const Data& data) const {
  const auto made = std::make_shared<Ready>();
  cut(data.image.batch, *made);
  made->packed = packed_.get(0, [&] { return Prepared::Operands{pack(expand_), pack(project_)}; });
  const cpu::SerialScope scope(made->side_by_side || made->serial);
  for (Band& band : made->bands) {
    band.all = expand(band.bottom - band.top, data, *made);
    band.rest = expand(band.bottom - band.top - band.kept, data, *made);
    band.filter = filter(band, data, *made);
    band.project = project(band.last - band.first, data, *made);
  }
  return made;
}

// Where there are fewer images than threads, and each fits the cache, the threads share layer after layer, as bands of
// one image would read some rows twice.
void InvertedResidualStep::cut(int64_t batch, Ready& made) const {
  made.serial = is_serial(products(batch));
  const int64_t threads = made.serial ? 1 : cpu::num_threads();
  int64_t pieces = ceil_div(g_.out_h, rows_in_cache());
  made.side_by_side = pieces > 1 || batch >= threads;
  made.slots = made.side_by_side ? std::min(threads, batch * g_.out_h) : 1;
  if (batch * pieces < kManyBands * made.slots)
    while (batch * pieces % made.slots != 0 && pieces < g_.out_h) ++pieces;
  const int64_t rows = ceil_div(g_.out_h, pieces);
  int64_t expanded_rows = 0;
  for (int64_t first = 0; first < g_.out_h; first += rows) {
    const Extent extent = rows_for(first, std::min(first + rows, g_.out_h));
    const int64_t before = made.bands.empty() ? 0 : made.bands.back().bottom;
    made.bands.push_back({extent, std::max<int64_t>(0, before - extent.top), nullptr, nullptr, nullptr, nullptr});
    expanded_rows = std::max(expanded_rows, extent.bottom - extent.top);
  }
  made.slots = std::min(made.slots, batch * static_cast<int64_t>(made.bands.size()));
  made.expanded = ceil_div(expanded_rows * expanded_row(), kLine) * kLine;
  made.floats = made.expanded + ceil_div(rows * filtered_row(), kLine) * kLine;
}

// The layers for bands of one form are made once.
const Conv* InvertedResidualStep::expand(int64_t rows, const Data& data, Ready& made) const {
  if (!expand_.defined() || rows == 0) return nullptr;
  std::unique_ptr<const Conv>& conv = made.expands[rows];
  if (conv == nullptr) {
    cpu::ImageView<float> image = data.image;
    image.batch = 1, image.height = rows;
    conv = prepare_1x1(expand_, image, {nullptr, g_.in_channels}, {nullptr, 0}, (*made.packed)[0]);
  }
  return conv.get();
}

const Conv* InvertedResidualStep::filter(const Band& band, const Data& data, Ready& made) const {
  Conv2dGeometry g = g_;
  g.in_h = band.bottom - band.top, g.out_h = band.last - band.first;
  g.pad_h = g_.pad_h + band.top - band.first * g_.stride_h;  // above what is read
  std::unique_ptr<const Conv>& conv = made.filters[{g.in_h, g.out_h, g.pad_h}];
  if (conv == nullptr) {
    const cpu::ImageView<float> image =
        expand_.defined() ? dense(g.in_h, g.in_w) : cpu::ImageView<float>{nullptr,
                                                                          1,
                                                                          g.in_h,
                                                                          g.in_w,
                                                                          g.in_channels,
                                                                          data.image.stride_n,
                                                                          data.image.stride_h,
                                                                          data.image.stride_w,
                                                                          1};
    conv = cpu::prepare_conv2d_depthwise(
        cpu::forward_problems<float>(g, image, filter_.weight, filter_.bias_data(), filter_.activation, nullptr,
                                     project_.defined() ? g.in_channels : data.out.pitch)[0]);
  }
  return conv.get();
}

const Conv* InvertedResidualStep::project(int64_t rows, const Data& data, Ready& made) const {
  if (!project_.defined()) return nullptr;
  std::unique_ptr<const Conv>& conv = made.projects[rows];
  if (conv == nullptr)
    conv = prepare_1x1(project_, dense(rows, g_.out_w), {nullptr, data.out.pitch}, data.residual, (*made.packed)[1]);
  return conv.get();
}

void InvertedResidualStep::run_bands(const Ready& ready, const Data& data, int64_t begin, int64_t end,
                                     float* memory) const {
  const int64_t count = static_cast<int64_t>(ready.bands.size()), row = expanded_row();
  float* const filtered = memory + ready.expanded;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / count;
    const Band& band = ready.bands[task % count];
    const float* image = data.image.data + n * data.image.stride_n;
    const float* read = image + band.top * data.image.stride_h;
    if (expand_.defined()) {
      const bool follows = task > begin && band.kept > 0;
      const int64_t kept = follows ? band.kept : 0;
      if (follows)
        std::memmove(memory, memory + (band.top - ready.bands[task % count - 1].top) * row, sizeof(float) * kept * row);
      if (const Conv* conv = follows ? band.rest : band.all)
        conv->run({image + (band.top + kept) * data.image.stride_h, memory + kept * row, nullptr});
      read = memory;
    }
    const int64_t first = (n * g_.out_h + band.first) * g_.out_w;
    float* const out = data.out.data + first * data.out.pitch;
    band.filter->run({read, project_.defined() ? filtered : out, nullptr});
    if (project_.defined())
      band.project->run({filtered, out, residual_ >= 0 ? data.residual.data + first * data.residual.pitch : nullptr});
  }
}

void InvertedResidualStep::run(Call& call) const {
  const Data data{call.nhwc(in_), residual_ >= 0 ? call.rows(residual_) : Rows{nullptr, 0}, call.rows(out_)};
  const std::shared_ptr<const Ready> r =
      ready_.get(CallKind::now(data.image, data.residual.pitch), [&] { return make_ready(data); });
  if (expand_.defined()) backends::record_kernel("conv2d_direct");
  backends::record_kernel("conv2d_depthwise");
  if (project_.defined()) backends::record_kernel("conv2d_direct");
  const at::Tensor memory = cpu::empty({r->slots, r->floats}, at::device(at::kCPU).dtype(at::kFloat));
  float* const floats = memory.mutable_data_ptr<float>();
  const int64_t tasks = data.image.batch * static_cast<int64_t>(r->bands.size());
  if (!r->side_by_side || r->slots == 1) {
    const cpu::SerialScope scope(r->side_by_side || r->serial);
    return run_bands(*r, data, 0, tasks, floats);
  }
  cpu::parallel_for(0, r->slots, 1, [&](int64_t begin, int64_t end) {
    const cpu::SerialScope scope(true);
    for (int64_t slot = begin; slot < end; ++slot)
      run_bands(*r, data, tasks * slot / r->slots, tasks * (slot + 1) / r->slots, floats + slot * r->floats);
  });
}

std::string InvertedResidualStep::describe() const {
  return text_ + ": conv2d_depthwise and conv2d_direct by bands of " + std::to_string(rows_in_cache()) + " rows";
}

}  // namespace

std::unique_ptr<Step> make_inverted_residual(StepReader& reader) {
  return std::make_unique<InvertedResidualStep>(reader);
}

}  // namespace fastcnn::plan
