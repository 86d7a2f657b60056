// What the host code of batch norm hands to its kernels. Tensors are rows of channels (NHWC), whose strides are in
// elements; a mask holds one bit an element, set where the ReLU lets the gradient pass: byte channel / 8 of its row,
// bit channel % 8. Compute is double for float64, else float.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/geometry.h"
#include "element.h"

namespace fastcnn::cuda {

// A value a channel, `stride` elements apart; null where it is left out.
struct ChannelValues {
  const void* data;
  Dtype dtype;
  int64_t stride;
};
struct ChannelResult {
  void* data;
  Dtype dtype;
  int64_t stride;
};

// How many tiles a reduction over the rows cuts them into: its workspace is double [2, tiles, channels].
int64_t batch_norm_tiles(const BatchNormGeometry& g);

// The batch's mean and biased variance.
struct BatchNormMomentsArgs {
  BatchNormGeometry geometry;
  Dtype dtype;
  const void* input;  // [rows, stride]
  int64_t stride;
  double* partial;  // workspace: each tile's sums, then its squared distances from its mean
  void* mean;       // Compute[channels]
  void* mean_rest;  // Compute[channels]: what the mean lost when it was rounded
  void* var;        // Compute[channels]
};
cudaError_t launch_batch_norm_moments(const BatchNormMomentsArgs& args, cudaStream_t stream);

// output = relu((input - mean) / sqrt(var + eps) * weight + bias + residual)
struct BatchNormApplyArgs {
  BatchNormGeometry geometry;
  Dtype dtype;
  const void* input;     // [rows, input_stride]
  const void* residual;  // [rows, residual_stride], or null
  void* output;          // [rows, channels]
  uint8_t* mask;         // [rows, mask_stride], or null
  int64_t input_stride, residual_stride;
  ChannelValues mean, mean_rest, var, weight, bias;
  double eps;
  bool relu;
};
cudaError_t launch_batch_norm_apply(const BatchNormApplyArgs& args, cudaStream_t stream);

// Sums over the rows of grad, which is grad_output where the mask lets it pass, and of grad * (input - mean).
struct BatchNormGradSumsArgs {
  BatchNormGeometry geometry;
  Dtype dtype;
  const void* grad_output;  // [rows, grad_stride]
  const void* input;        // [rows, input_stride]
  const uint8_t* mask;      // [rows, mask_stride], or null
  int64_t grad_stride, input_stride;
  ChannelValues mean;
  double* partial;  // workspace: each tile's sums of grad, then of the products
};
cudaError_t launch_batch_norm_grad_sums(const BatchNormGradSumsArgs& args, cudaStream_t stream);

// From the sums the gradients of weight and bias, and the factors of the input's.
struct BatchNormGradFactorsArgs {
  BatchNormGeometry geometry;
  Dtype dtype;
  const double* partial;  // what launch_batch_norm_grad_sums left, or null for sums of zero
  ChannelValues mean, var, weight;
  double eps;
  ChannelResult grad_weight, grad_bias;  // null where they are not wanted
  void* factors;                         // Compute[4, channels]: mean, scale, slope, offset; or null
};
cudaError_t launch_batch_norm_grad_factors(const BatchNormGradFactorsArgs& args, cudaStream_t stream);

// grad_input = grad * scale + (input - mean) * slope + offset, without the last two terms where input is null;
// grad_residual = grad.
struct BatchNormGradInputArgs {
  BatchNormGeometry geometry;
  Dtype dtype;
  const void* grad_output;  // [rows, grad_stride]
  const void* input;        // [rows, input_stride], or null
  const uint8_t* mask;      // [rows, mask_stride], or null
  int64_t grad_stride, input_stride;
  const void* factors;  // as launch_batch_norm_grad_factors left them
  void* grad_input;     // [rows, channels], or null
  void* grad_residual;  // [rows, channels], or null
};
cudaError_t launch_batch_norm_grad_input(const BatchNormGradInputArgs& args, cudaStream_t stream);

// running = keep * running + take * batch, for mean and variance; in float64 where `wide`, else in float32.
struct BatchNormUpdateArgs {
  int64_t channels;
  ChannelResult running_mean, running_var;
  ChannelValues mean, var;
  double keep, take_mean, take_var;
  bool wide;
};
cudaError_t launch_batch_norm_update(const BatchNormUpdateArgs& args, cudaStream_t stream);

}  // namespace fastcnn::cuda
