// Driver of the direct kernel for a handful of output channels: copies each image's rows into haloed planes.

#include <algorithm>

#include "conv2d.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

constexpr int64_t kMaxReduction = 512;  // one chain of additions, as in the other direct kernels
constexpr int64_t kTaskRows = 16;       // output rows of one task at least, where an image is shared by threads

template <typename T>
class PlanarRun {
  using Element = Compute<T>;

 public:
  explicit PlanarRun(const GatherConv<T>& p) : p_(p), kernel_(kernels().of<T>()) {
    const WindowGrid& g = p.grid;
    row_stride_ = g.cols + g.max_w() - g.min_w();
    halo_ = g.max_h() - g.min_h();
  }

  void run() {
    const int64_t threads = at::get_num_threads(), batch = p_.image.batch;
    const int64_t parts =
        batch >= threads ? 1 : std::clamp<int64_t>(p_.grid.rows / kTaskRows, 1, ceil_div(threads, batch));
    const int64_t rows = ceil_div(p_.grid.rows, parts), slack = 8 * kernel_.width;  // tiles run over the last position
    const int64_t plane = (rows + halo_) * row_stride_ + slack, results = rows * row_stride_ + slack;
    pack(plane);
    const int64_t scratch_size = p_.image.depth * plane + p_.lanes * results;
    const at::Tensor scratch = empty({threads, scratch_size}, kComputeDtype<T>);
    Element* scratch_data = scratch.mutable_data_ptr<Element>();
    parallel_for(0, batch * parts, 1, [&](int64_t begin, int64_t end) {
      Element* planes = scratch_data + at::get_thread_num() * scratch_size;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / parts, i = task % parts * rows, i_end = std::min(i + rows, p_.grid.rows);
        if (i >= i_end) continue;
        copy_planes(n, i, i_end, plane, planes);
        kernel_.conv2d_planar(
            {planes, offsets_.data(), weight_.data(), static_cast<int64_t>(offsets_.size()), static_cast<int>(p_.lanes),
             p_.bias, p_.relu, i_end - i, p_.grid.cols, row_stride_, planes + p_.image.depth * plane, results,
             p_.output + n * p_.out_stride_n + i * p_.out_stride_h, p_.out_stride_h, p_.out_stride_w});
      }
    });
  }

 private:
  void pack(int64_t plane) {
    const WindowGrid& g = p_.grid;
    for (int64_t d = 0; d < p_.image.depth; ++d)
      for (const Tap& t : g.taps) {
        offsets_.push_back(d * plane + (t.h - g.min_h()) * row_stride_ + t.w - g.min_w());
        for (int64_t lane = 0; lane < p_.lanes; ++lane)
          weight_.push_back(widen(p_.weight[t.weight_offset + d * p_.depth_stride + lane * p_.lane_stride]));
      }
  }

  // Rows of windows [i, i_end) of an image, channel by channel, with zeros outside the image.
  void copy_planes(int64_t n, int64_t i, int64_t i_end, int64_t plane, Element* planes) const {
    const ImageView<T>& image = p_.image;
    const int64_t first_h = i + p_.grid.min_h(), first_w = p_.grid.min_w(), height = i_end - i + halo_;
    const int64_t begin = std::clamp<int64_t>(-first_w, 0, row_stride_);
    const int64_t end = std::clamp<int64_t>(image.width - first_w, begin, row_stride_);
    for (int64_t d = 0; d < image.depth; ++d) {
      Element* row = planes + d * plane;
      for (int64_t y = 0; y < height; ++y, row += row_stride_) {
        const int64_t h = first_h + y;
        if (h < 0 || h >= image.height) {
          std::fill(row, row + row_stride_, Element(0));
          continue;
        }
        std::fill(row, row + begin, Element(0));
        std::fill(row + end, row + row_stride_, Element(0));
        const T* src = image.data + n * image.stride_n + h * image.stride_h + d * image.stride_c +
                       (first_w + begin) * image.stride_w;
        for (int64_t x = begin; x < end; ++x, src += image.stride_w) row[x] = widen(*src);
      }
      std::fill(row, planes + (d + 1) * plane, Element(0));  // read by tiles that run over, and never used
    }
  }

  const GatherConv<T>& p_;
  const KernelSet<T>& kernel_;
  int64_t row_stride_, halo_;
  std::vector<int64_t> offsets_;
  std::vector<Element> weight_;
};

}  // namespace

template <typename T>
bool conv2d_planar_applies(const GatherConv<T>& p) {
  const int64_t reduction = static_cast<int64_t>(p.grid.taps.size()) * p.image.depth;
  return p.lanes <= kPlanarChannels && 2 * p.lanes <= kernels().of<T>().width && p.grid.step_h == 1 &&
         p.grid.step_w == 1 && p.grid.cols > 1 && reduction > 0 && reduction <= kMaxReduction;
}

template <typename T>
void conv2d_planar(const GatherConv<T>& problem) {
  PlanarRun<T>(problem).run();
}

#define FASTCNN_INSTANTIATE(T)                                  \
  template bool conv2d_planar_applies<T>(const GatherConv<T>&); \
  template void conv2d_planar<T>(const GatherConv<T>&);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
