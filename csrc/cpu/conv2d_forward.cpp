// The forward pass of conv2d as gathers, for the op and for compiled plans.
#include "conv2d.h"

namespace fastcnn::cpu {

at::Tensor depthwise_lanes(const at::Tensor& weight) {
  return weight.permute({1, 2, 3, 0}).contiguous().permute({3, 0, 1, 2});
}

template <typename T>
std::vector<GatherConv<T>> forward_problems(Conv2dGeometry g, const ImageView<T>& image, const at::Tensor& weight,
                                            const T* bias, Activation activation, T* output, int64_t pitch) {
  if (g.depthwise()) g.groups = 1;  // one problem, of which the kernel keeps the channels apart
  GatherConv<T> p{};
  p.image = image;
  p.image.depth = g.group_in();
  p.grid = {g.out_h, g.out_w, g.stride_h, g.stride_w, {}};
  for (int64_t kh = 0; kh < g.kernel_h; ++kh)
    for (int64_t kw = 0; kw < g.kernel_w; ++kw)
      p.grid.taps.push_back(
          {kh * g.dilation_h - g.pad_h, kw * g.dilation_w - g.pad_w, kh * weight.stride(2) + kw * weight.stride(3)});
  p.depth_stride = weight.stride(1), p.lane_stride = weight.stride(0);
  p.lanes = g.group_out(), p.problems = g.groups;
  p.activation = activation;
  p.out_stride_w = pitch, p.out_stride_h = g.out_w * p.out_stride_w, p.out_stride_n = g.out_h * p.out_stride_h;

  std::vector<GatherConv<T>> problems;
  for (int64_t group = 0; group < g.groups; ++group) {
    problems.push_back(p);
    GatherConv<T>& q = problems.back();
    q.image.data += group * g.group_in() * p.image.stride_c;
    q.weight = data_of<T>(weight) + group * g.group_out() * weight.stride(0);
    q.bias = bias != nullptr ? bias + group * g.group_out() : nullptr;
    q.output = output + group * g.group_out();
  }
  return problems;
}

#define FASTCNN_INSTANTIATE(T)                                                                                    \
  template std::vector<GatherConv<T>> forward_problems<T>(Conv2dGeometry, const ImageView<T>&, const at::Tensor&, \
                                                          const T*, Activation, T*, int64_t);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
