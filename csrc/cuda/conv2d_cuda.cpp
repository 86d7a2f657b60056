// conv2d on CUDA tensors: makes them NHWC, chooses the kernels, and gives results in the caller's format.
#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <torch/library.h>

#include "../checks/checks.h"
#include "../common/backends.h"
#include "../common/switches.h"
#include "../fallback.h"
#include "conv2d_depthwise_launch.h"
#include "conv2d_direct_launch.h"
#include "conv2d_gemm_launch.h"
#include "conv2d_sums_launch.h"
#include "tensors.h"

namespace fastcnn::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A GEMM tile is at least 32 channels wide and 128 high. Groups that fill no more than a quarter of it go to the direct
// kernel, and an eighth where the tile is multiplied on tensor cores. By arithmetic: not measured.
constexpr int64_t kFewChannels = 8, kFewForWmma = 4, kFewWeights = 256;

struct Algorithm {
  const char* name;
  int64_t (*parts)(const Conv2dArgs&);
  cudaError_t (*launch)(const Conv2dArgs&, cudaStream_t);
};

Algorithm choose(Conv2dArgs& args) {
  const Conv2dGeometry& g = args.geometry;
  if (g.depthwise()) return {"conv2d_depthwise", conv2d_depthwise_parts, launch_conv2d_depthwise};
  const bool wmma = conv2d_gemm_uses_wmma(args);
  const int64_t lanes = args.pass == Conv2dPass::grad_input ? g.group_in() : g.group_out();
  const bool few = lanes <= (wmma ? kFewForWmma : kFewChannels) &&
                   (args.pass != Conv2dPass::grad_weight || g.kernel_h * g.kernel_w * g.group_in() <= kFewWeights);
  if (few && choose_conv2d_direct_tile(args)) return {"conv2d_direct", conv2d_direct_parts, launch_conv2d_direct};
  return {wmma ? "conv2d_gemm_wmma" : "conv2d_gemm_fma", conv2d_gemm_parts, launch_conv2d_gemm};
}

bool runs_here(const Conv2dGeometry& g, at::ScalarType dtype) {
  return is_covered(dtype) && conv2d_covers(g) && backends::current().conv2d_algorithm != Conv2dAlgorithm::aten;
}

Conv2dArgs make_args(Conv2dPass pass, const Conv2dGeometry& g, const Tensor& like) {
  Conv2dArgs args{};
  args.pass = pass, args.dtype = dtype_of(like), args.geometry = g;
  const cudaDeviceProp* device = at::cuda::getCurrentDeviceProperties();
  args.capability = device->major * 10 + device->minor;
  args.batch_invariant = backends::current().batch_invariant;
  args.tf32 = args.dtype == Dtype::f32 && at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
  return args;
}

Tensor make_parts(int64_t count, int64_t size, const Tensor& like) {
  const auto dtype = like.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return empty({count, size}, like.options().dtype(dtype));
}

// What is left of the parts [count, ...] when they are added up, in the shape and memory of `sums`. A forward pass has
// bias and ReLU.
void sum_parts(const Tensor& parts, const Tensor& sums, const Conv2dArgs& pass = {}) {
  const Conv2dSumPartsArgs args{dtype_of(sums),
                                parts.size(0),
                                sums.numel(),
                                parts.const_data_ptr(),
                                sums.mutable_data_ptr(),
                                pass.bias,
                                pass.geometry.out_channels,
                                pass.relu};
  C10_CUDA_CHECK(launch_conv2d_sum_parts(args, c10::cuda::getCurrentCUDAStream()));
}

// Computes a pass into `result`, by way of parts where the algorithm leaves them.
void run(Conv2dArgs& args, const Tensor& result) {
  const Algorithm algorithm = choose(args);
  const int64_t count = algorithm.parts(args);
  const bool unrounded = args.dtype == Dtype::f32 || args.dtype == Dtype::f64;
  const bool whole = count == 0 || (count == 1 && unrounded);
  const Tensor parts = whole ? result : make_parts(count, result.numel(), result);
  args.result = parts.mutable_data_ptr();
  backends::record_kernel(algorithm.name);
  C10_CUDA_CHECK(algorithm.launch(args, c10::cuda::getCurrentCUDAStream()));
  if (!whole) sum_parts(parts, result, args);
}

Tensor conv2d_cuda(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, at::IntArrayRef stride,
                   at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                   std::optional<std::string_view> activation) {
  const bool relu = checks::relu_activation("conv2d", activation);
  const Conv2dGeometry g = checks::conv2d(input, weight, bias, stride, padding, dilation, groups);
  if (!runs_here(g, input.scalar_type()))
    return fallback::conv2d(input, weight, bias, stride, padding, dilation, groups, activation);
  const c10::cuda::CUDAGuard guard(input.device());
  const auto fill = [&](const Tensor& output) {
    const Tensor image = input.contiguous(kNhwc), weights = weight.contiguous(kNhwc);
    const Tensor dense_bias = bias.has_value() && bias->defined() ? bias->contiguous() : Tensor();
    Conv2dArgs args = make_args(Conv2dPass::forward, g, input);
    args.relu = relu;
    args.input = image.const_data_ptr(), args.weight = weights.const_data_ptr();
    args.bias = dense_bias.defined() ? dense_bias.const_data_ptr() : nullptr;
    run(args, output);
  };
  const auto format = input.suggest_memory_format() == kNhwc ? kNhwc : weight.suggest_memory_format();
  return layout::filled<empty>({g.batch, g.out_channels, g.out_h, g.out_w}, input.options(), format, fill);
}

// grad_output [n, c, h, w] as dense NHWC and through a fused ReLU's mask, and where asked for its sums.
std::tuple<Tensor, Tensor> through_relu(const Tensor& grad_output, const OptionalTensor& activated, bool summed) {
  const Tensor source = grad_output.contiguous(kNhwc);
  const bool masked = activated.has_value() && activated->defined();
  if (!masked && !summed) return {source, Tensor()};
  backends::record_kernel("conv2d_grad_output");
  const Tensor mask = masked ? activated->contiguous() : Tensor();
  const Tensor result = masked ? empty(source.sizes(), source.options(), kNhwc) : source;
  Conv2dGradOutputArgs args{};
  args.dtype = dtype_of(source);
  args.channels = source.size(1), args.rows = source.numel() / args.channels;
  args.grad_output = source.const_data_ptr();
  args.activated = masked ? mask.const_data_ptr<uint8_t>() : nullptr;
  args.grad = masked ? result.mutable_data_ptr() : nullptr;
  const Tensor parts = make_parts(summed ? conv2d_grad_output_parts(args) : 0, args.channels, source);
  args.sums = summed ? parts.mutable_data_ptr() : nullptr;
  C10_CUDA_CHECK(launch_conv2d_grad_output(args, c10::cuda::getCurrentCUDAStream()));
  if (!summed) return {result, Tensor()};
  const Tensor sums = empty({args.channels}, source.options());
  sum_parts(parts, sums);
  return {result, sums};
}

Tensor grad_input(const Conv2dGeometry& g, const Tensor& grad, const Tensor& weight, at::MemoryFormat format) {
  const auto fill = [&](const Tensor& result) {
    const Tensor weights = weight.contiguous(kNhwc);
    Conv2dArgs args = make_args(Conv2dPass::grad_input, g, grad);
    args.grad_output = grad.const_data_ptr(), args.weight = weights.const_data_ptr();
    run(args, result);
  };
  return layout::filled<empty>({g.batch, g.in_channels, g.in_h, g.in_w}, grad.options(), format, fill);
}

Tensor grad_weight(const Conv2dGeometry& g, const Tensor& grad, const Tensor& input, at::MemoryFormat format) {
  const auto fill = [&](const Tensor& result) {
    if (g.batch == 0) return sum_parts(make_parts(0, result.numel(), grad), result);
    const Tensor image = input.contiguous(kNhwc);
    Conv2dArgs args = make_args(Conv2dPass::grad_weight, g, grad);
    args.grad_output = grad.const_data_ptr(), args.input = image.const_data_ptr();
    run(args, result);
  };
  return layout::filled<empty>({g.out_channels, g.group_in(), g.kernel_h, g.kernel_w}, grad.options(), format, fill);
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward_cuda(const Tensor& grad_output, const Tensor& input,
                                                        const Tensor& weight, at::IntArrayRef stride,
                                                        at::IntArrayRef padding, at::IntArrayRef dilation,
                                                        int64_t groups, std::array<bool, 3> output_mask,
                                                        const OptionalTensor& activated) {
  const Conv2dGeometry g =
      checks::conv2d_backward(grad_output, input, weight, stride, padding, dilation, groups, activated);
  if (!runs_here(g, input.scalar_type()))
    return fallback::conv2d_backward(grad_output, input, weight, stride, padding, dilation, groups, output_mask,
                                     activated);
  const c10::cuda::CUDAGuard guard(input.device());
  const auto [grad, sums] = through_relu(grad_output, activated, output_mask[2]);
  const bool nhwc = input.suggest_memory_format() == kNhwc || weight.suggest_memory_format() == kNhwc;
  const auto format = nhwc ? kNhwc : at::MemoryFormat::Contiguous;
  const auto none = [&] { return empty({0}, input.options()); };
  return {output_mask[0] ? grad_input(g, grad, weight, format) : none(),
          output_mask[1] ? grad_weight(g, grad, input, format) : none(), output_mask[2] ? sums : none()};
}

}  // namespace
}  // namespace fastcnn::cuda

TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  m.impl("conv2d", fastcnn::cuda::conv2d_cuda);
  m.impl("_conv2d_traced", fastcnn::backends::GivingSwitches<fastcnn::cuda::conv2d_cuda>::call);
  m.impl("conv2d_backward", fastcnn::backends::TakingSwitches<fastcnn::cuda::conv2d_backward_cuda>::call);
}
