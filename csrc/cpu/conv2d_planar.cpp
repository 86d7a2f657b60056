// Driver of the direct kernel for a handful of output channels: copies each image's rows into haloed planes.

#include <algorithm>

#include "conv2d.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

constexpr int64_t kMaxReduction = 512;  // one chain of additions
constexpr int64_t kTaskRows = 16;       // output rows of one task at least, where an image is shared by threads

template <typename T>
class PlanarRun final : public PreparedConv<T> {
  using Element = Compute<T>;

 public:
  explicit PlanarRun(const GatherConv<T>& p) : p_(p), kernel_(kernels().of<T>()) {
    const WindowGrid& g = p.grid;
    first_h_ = g.min_h(), first_w_ = g.min_w();
    row_stride_ = g.cols + g.max_w() - first_w_;
    halo_ = g.max_h() - first_h_;
    const int64_t threads = num_threads(), batch = p.image.batch;
    parts_ = batch >= threads ? 1 : std::clamp<int64_t>(g.rows / kTaskRows, 1, ceil_div(threads, batch));
    rows_ = ceil_div(g.rows, parts_);
    const int64_t slack = 8 * kernel_.width;  // tiles run over the last position
    plane_ = (rows_ + halo_) * row_stride_ + slack;
    // Results lie half a page from the inputs of the next tile, which would wait for stores to the same place in a
    // page, and each channel's in lines of their own.
    constexpr int64_t kPage = 4096 / sizeof(Element), kLine = 64 / sizeof(Element);
    results_begin_ = p.image.depth * plane_;
    results_begin_ += (kPage + kPage / 2 - results_begin_ % kPage) % kPage;
    results_ = (ceil_div(rows_ * row_stride_ + slack, kLine) | 1) * kLine;
    pack();
  }

  void run(const GatherData<T>& data) const override {
    const int64_t scratch_size = results_begin_ + p_.lanes * results_;
    const at::Tensor scratch = empty({num_threads(), scratch_size}, kComputeDtype<T>);
    Element* scratch_data = scratch.mutable_data_ptr<Element>();
    ImageView<T> image = p_.image;
    image.data = data.image;
    parallel_for(0, image.batch * parts_, 1, [&](int64_t begin, int64_t end) {
      Element* planes = scratch_data + at::get_thread_num() * scratch_size;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / parts_, i = task % parts_ * rows_, i_end = std::min(i + rows_, p_.grid.rows);
        if (i >= i_end) continue;
        copy_window_planes(image, n, {i + first_h_, first_w_, i_end - i + halo_, plane_, row_stride_}, planes);
        kernel_.conv2d_planar(
            {planes, offsets_.data(), weight_.data(), static_cast<int64_t>(offsets_.size()), static_cast<int>(p_.lanes),
             p_.bias, p_.activation, i_end - i, p_.grid.cols, row_stride_, planes + results_begin_, results_,
             data.output + n * p_.out_stride_n + i * p_.out_stride_h, p_.out_stride_h, p_.out_stride_w});
      }
    });
  }

 private:
  void pack() {
    const WindowGrid& g = p_.grid;
    for (int64_t d = 0; d < p_.image.depth; ++d)
      for (const Tap& t : g.taps) {
        offsets_.push_back(d * plane_ + (t.h - first_h_) * row_stride_ + t.w - first_w_);
        for (int64_t lane = 0; lane < p_.lanes; ++lane)
          weight_.push_back(widen(p_.weight[t.weight_offset + d * p_.depth_stride + lane * p_.lane_stride]));
      }
  }

  const GatherConv<T> p_;
  const KernelSet<T>& kernel_;
  int64_t first_h_, first_w_, row_stride_, halo_;
  int64_t parts_, rows_;                     // tasks of an image, and of each the output rows
  int64_t plane_, results_begin_, results_;  // elements of a channel's input, before the output, of a channel's output
  std::vector<int64_t> offsets_;
  std::vector<Element> weight_;
};

}  // namespace

template <typename T>
void copy_window_planes(const ImageView<T>& image, int64_t n, const PlaneWindow& w, Compute<T>* planes) {
  using Element = Compute<T>;
  // Rows [top, bottom) and columns [begin, end) of the planes lie inside the image.
  const int64_t top = std::clamp<int64_t>(-w.first_h, 0, w.height);
  const int64_t bottom = std::clamp<int64_t>(image.height - w.first_h, top, w.height);
  const int64_t begin = std::clamp<int64_t>(-w.first_w, 0, w.row_stride);
  const int64_t end = std::clamp<int64_t>(image.width - w.first_w, begin, w.row_stride);
  const T* source =
      image.data + n * image.stride_n + (w.first_h + top) * image.stride_h + (w.first_w + begin) * image.stride_w;
  const bool together = image.stride_c == 1;
  for (int64_t d = 0; d < image.depth; ++d) {
    Element* rows = planes + d * w.plane;
    std::fill(rows, rows + top * w.row_stride, Element(0));
    if (d == 0 || !together)
      kernels().of<T>().conv2d_planes({source + d * image.stride_c, image.stride_h, image.stride_w,
                                       together ? image.depth : 1, bottom - top, end - begin, rows + top * w.row_stride,
                                       w.plane, w.row_stride, begin});
    // What lies behind is read by tiles that run over, and never used.
    std::fill(rows + bottom * w.row_stride, rows + w.plane, Element(0));
  }
}

template <typename T>
bool conv2d_planar_applies(const GatherConv<T>& p) {
  const int64_t reduction = static_cast<int64_t>(p.grid.taps.size()) * p.image.depth;
  return p.lanes <= kPlanarChannels && 2 * p.lanes <= kernels().of<T>().width && p.grid.step_h == 1 &&
         p.grid.step_w == 1 && p.grid.cols > 1 && reduction > 0 && reduction <= kMaxReduction;
}

template <typename T>
void conv2d_planar(const GatherConv<T>& problem) {
  PlanarRun<T>(problem).run({problem.image.data, problem.output, nullptr});
}

template <typename T>
std::unique_ptr<const PreparedConv<T>> prepare_conv2d_planar(const GatherConv<T>& problem) {
  return std::make_unique<PlanarRun<T>>(problem);
}

#define FASTCNN_INSTANTIATE(T)                                                                    \
  template bool conv2d_planar_applies<T>(const GatherConv<T>&);                                   \
  template void conv2d_planar<T>(const GatherConv<T>&);                                           \
  template std::unique_ptr<const PreparedConv<T>> prepare_conv2d_planar<T>(const GatherConv<T>&); \
  template void copy_window_planes<T>(const ImageView<T>&, int64_t, const PlaneWindow&, Compute<T>*);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
