// The CPU side of conv2d: one file an algorithm. Each takes validated geometry and tensors of one dtype, NHWC where it
// says so. T is the tensors' element type; what is packed, transformed or summed up is of the type T is computed in.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "../common/backends.h"
#include "../common/geometry.h"
#include "capability.h"
#include "dtypes.h"

namespace fastcnn::cpu {

// An image batch [batch, height, width, depth] with any strides, in elements.
template <typename T>
struct ImageView {
  const T* data;
  int64_t batch, height, width, depth;
  int64_t stride_n, stride_h, stride_w, stride_c;
};

// A tap reads the element that lies (h, w) after a window's origin; its weights start `weight_offset` after the first.
struct Tap {
  int64_t h, w;
  int64_t weight_offset;
};

// Windows over an image: (i, j) of rows x cols has its origin at (i * step_h, j * step_w), and taps may leave the image
// on every side, where they read zeros. Taps are sorted by h, then w.
struct WindowGrid {
  int64_t rows, cols;
  int64_t step_h, step_w;
  std::vector<Tap> taps;

  int64_t min_h() const, max_h() const, min_w() const, max_w() const;
  // Whether no window leaves an image of this size.
  bool inside(int64_t height, int64_t width) const {
    return min_h() >= 0 && min_w() >= 0 && (rows - 1) * step_h + max_h() < height &&
           (cols - 1) * step_w + max_w() < width;
  }
};

// Positions whose windows leave the image on the same sides by as much, so that the same taps lie inside.
struct WindowClass {
  std::vector<int64_t> rows, cols;
  std::vector<size_t> taps;
};
std::vector<WindowClass> window_classes(const WindowGrid& grid, int64_t height, int64_t width);

// One convolution as a gather: output(n, i, j, lane) = activation(bias[lane] + sum over taps t, depth d of
// image(n, i * step_h + t.h, j * step_w + t.w, d) * weight[t.weight_offset + d * depth_stride + lane * lane_stride] +
// residual(n, i, j, lane)).
template <typename T>
struct GatherConv {
  ImageView<T> image;
  WindowGrid grid;
  const T* weight;
  int64_t depth_stride, lane_stride;
  int64_t lanes;
  int64_t problems = 1;  // of which the layer consists: its groups
  const T* bias;         // [lanes] or null
  Activation activation;
  T* output;
  int64_t out_stride_n, out_stride_h, out_stride_w;  // lanes are neighbours
  // Only for conv2d_direct and conv2d_winograd:
  const T* residual;  // null, or may be the output
  int64_t residual_stride_n, residual_stride_h, residual_stride_w;
  const Compute<T>* packed;  // the weight as conv2d_direct_weight or conv2d_winograd_weight made it, or null
  // Only for conv2d_winograd: the output is the result's maxima over windows of 2 x 2, half as many rows and columns.
  bool max_pools = false;
};

// Where the data of one run lies: a problem's own, or others of the same strides. There is a residual where the problem
// has one.
template <typename T>
struct GatherData {
  const T* image;
  T* output;
  const T* residual;
};

// A problem made ready for many runs: what follows from sizes, switches and the number of threads is worked out once,
// some microseconds. Weights and bias stay where they are. Threads may share it.
template <typename T>
class PreparedConv {
 public:
  virtual ~PreparedConv() = default;
  virtual void run(const GatherData<T>& data) const = 0;
};

// Lanes in blocks of nearly equal numbers of registers.
struct LaneBlocks {
  int width;
  int64_t vectors, count;

  LaneBlocks(int64_t lanes, int width, int max_vectors)
      : width(width), vectors(ceil_div(lanes, width)), count(ceil_div(vectors, max_vectors)) {}
  int64_t first_vector(int64_t block) const { return vectors * block / count; }
  int64_t first_lane(int64_t block) const { return first_vector(block) * width; }
  int64_t padded_lanes() const { return vectors * width; }
};

// Winograd's F(outputs x outputs, kernel x kernel): tiles of points = outputs + kernel - 1 elements a side.
struct WinogradSize {
  int points, kernel;

  int outputs() const { return points - kernel + 1; }
  int64_t planes() const { return int64_t{points} * points; }
};
constexpr WinogradSize kWinograd4x3{6, 3}, kWinograd2x3{4, 3}, kWinograd2x5{6, 5};
// None where the algorithm is another.
std::optional<WinogradSize> winograd_size(Conv2dAlgorithm algorithm);

template <typename T>
ImageView<T> image_view(const at::Tensor& nchw);

// Depthwise weights [c, 1, kernel_h, kernel_w] whose channels are neighbours.
at::Tensor depthwise_lanes(const at::Tensor& weight);
// The forward pass, one problem a group; a depthwise layer is one problem, and its weights are depthwise_lanes.
// The output's pixels lie `pitch` elements apart, without gaps between rows and images.
template <typename T>
std::vector<GatherConv<T>> forward_problems(Conv2dGeometry g, const ImageView<T>& image, const at::Tensor& weight,
                                            const T* bias, Activation activation, T* output, int64_t pitch);

// Runs the problems one after the other, each one over all threads.
template <typename T>
void conv2d_direct(const std::vector<GatherConv<T>>& problems);
template <typename T>
std::unique_ptr<const PreparedConv<T>> prepare_conv2d_direct(const GatherConv<T>& problem);
// The weight in the order that the kernels in use (kernels()) read it in, for problems of any batch and image size.
template <typename T>
at::Tensor conv2d_direct_weight(const GatherConv<T>& problem);

// Whether a problem has so few lanes that positions make better ones, and its run.
template <typename T>
bool conv2d_planar_applies(const GatherConv<T>& problem);
template <typename T>
void conv2d_planar(const GatherConv<T>& problem);
template <typename T>
std::unique_ptr<const PreparedConv<T>> prepare_conv2d_planar(const GatherConv<T>& problem);

// A part of one image, and zeros outside the image, as planes of one channel each: `height` rows from row first_h on,
// row_stride columns from column first_w on. Planes lie `plane` elements apart, at least a register more than they
// take.
struct PlaneWindow {
  int64_t first_h, first_w, height, plane, row_stride;
};
template <typename T>
void copy_window_planes(const ImageView<T>& image, int64_t n, const PlaneWindow& window, Compute<T>* planes);

// The weight's gradient of a layer of few output channels, one group's: `input` are its input channels, grad_output
// [n, out_h, out_w, g.out_channels] begins at its first output channel. Operations for a row of output pixels, none
// where it does not apply, and the run, which writes [group_out, kernel_h, kernel_w, group_in].
template <typename T>
std::optional<int64_t> planar_grad_weight_cost(const Conv2dGeometry& g);
template <typename T>
void conv2d_planar_grad_weight(const Conv2dGeometry& g, const ImageView<T>& input, const T* grad_output,
                               Compute<T>* grad_weight);

// The same for problems of step 1 whose taps are a whole kernel x kernel square and whose image's channels are
// neighbours.
template <typename T>
void conv2d_winograd(const std::vector<GatherConv<T>>& problems, WinogradSize size);
template <typename T>
std::unique_ptr<const PreparedConv<T>> prepare_conv2d_winograd(const GatherConv<T>& problem, WinogradSize size);
// The weight transformed, as conv2d_direct_weight.
template <typename T>
at::Tensor conv2d_winograd_weight(const GatherConv<T>& problem, WinogradSize size);

// A reduction over one run of `length` elements, split where its chain of additions grows long.
std::vector<Conv2dSegment> chained_segments(int64_t length);

// The register tile of a weight gradient: panels of `rows` output channels times `vectors` registers of lanes, of which
// there are `runs` runs of `run_length`. `cost` counts operations for one pixel, and the loads that they wait for.
struct GradWeightTile {
  int vectors, rows;
  int64_t cost;
};
// Vector operations, and the loads that they wait for: a small tile loads more than it multiplies.
int64_t grad_weight_tile_cost(int64_t operations, int vectors, int rows);
template <typename T>
GradWeightTile choose_grad_weight_tile(const KernelSet<T>& kernel, int64_t runs, int64_t run_length, int64_t outputs);

// Elements that rows [i0, i1) of one image's windows need, and the copy of them, with zeros outside the image. The copy
// is of the image's type or of that which it is computed in; its pixels lie `pitch` elements apart, with zeros between.
int64_t window_rows_size(const WindowGrid& grid, int64_t rows, int64_t depth);
template <typename T, typename Copy>
void copy_window_rows(const ImageView<T>& image, const WindowGrid& grid, int64_t n, int64_t i0, int64_t i1,
                      int64_t pitch, Copy* dst);

// grad_output is NHWC; the results are channels_last, in the type that T is computed in.
template <typename T>
void conv2d_grad_weight_direct(const Conv2dGeometry& g, const at::Tensor& grad_output, const at::Tensor& input,
                               at::Tensor& grad_weight);
template <typename T>
void conv2d_grad_weight_winograd(const Conv2dGeometry& g, WinogradSize size, const at::Tensor& grad_output,
                                 const at::Tensor& input, at::Tensor& grad_weight);
// grad_output as dense NHWC, where a fused ReLU's mask is given zero where its bit is not set, and if asked for its
// sums over images and positions, in the type that T is computed in.
template <typename T>
std::tuple<at::Tensor, at::Tensor> conv2d_grad_output(const at::Tensor& grad_output, const at::Tensor& activated,
                                                      bool sums);

// As conv2d_direct, but each lane convolves the image's channel of its number: depth_stride and lane_stride are unused,
// the weights' lanes are neighbours, and so are the image's channels.
template <typename T>
void conv2d_depthwise(const std::vector<GatherConv<T>>& problems);
template <typename T>
std::unique_ptr<const PreparedConv<T>> prepare_conv2d_depthwise(const GatherConv<T>& problem);
// All tensors NHWC; adds onto the gradient [kernel_h, kernel_w, channels], which is of the type T is computed in.
template <typename T>
void depthwise_grad_weight(const Conv2dGeometry& g, const at::Tensor& grad_output, const at::Tensor& input,
                           at::Tensor& grad_weight);

}  // namespace fastcnn::cpu
