// Every op of the package: the table of contents. Kernels register themselves in autograd/, cpu/, cuda/ and
// fallback.cpp.
#include <torch/library.h>

TORCH_LIBRARY(fastcnn, m) {
  // The names that begin with _ also give the ReLU's mask, one bit an element, for the backward.
  m.def(
      "batch_norm_train(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, float eps, bool relu) -> "
      "(Tensor output, Tensor mean, Tensor var)");
  m.def(
      "_batch_norm_train(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, float eps, bool relu) -> "
      "(Tensor output, Tensor mean, Tensor var, Tensor mask)");
  // What traced graphs hold where a gradient is wanted; the switches go into the backward. Likewise below.
  m.def(
      "_batch_norm_train_traced(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, float eps, bool relu) -> "
      "(Tensor output, Tensor mean, Tensor var, Tensor mask, Tensor switches)");
  m.def(
      "batch_norm_train_backward(Tensor grad_output, Tensor input, Tensor mean, Tensor var, Tensor? weight, "
      "Tensor mask, float eps, bool[4] output_mask, Tensor? switches=None) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "batch_norm_infer(Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? residual, "
      "float eps, bool relu) -> Tensor");
  m.def(
      "_batch_norm_infer(Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? residual, "
      "float eps, bool relu) -> (Tensor output, Tensor mask)");
  m.def(
      "_batch_norm_infer_traced(Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? residual, "
      "float eps, bool relu) -> (Tensor output, Tensor mask, Tensor switches)");
  m.def(
      "batch_norm_infer_backward(Tensor grad_output, Tensor input, Tensor mean, Tensor var, Tensor? weight, "
      "Tensor mask, float eps, bool[4] output_mask, Tensor? switches=None) -> (Tensor, Tensor, Tensor, Tensor)");
  // Moves the running statistics towards the batch's; the one op that writes to its arguments, because the wrapper's
  // job is that, and as several of torch's ops it takes longer than a small layer.
  m.def(
      "_batch_norm_update(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, float momentum, "
      "SymInt rows) -> ()");
  m.def("concat(Tensor[] tensors, int dim=0) -> Tensor");
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, SymInt[2] padding=0, "
      "SymInt[2] dilation=1, SymInt groups=1, str? activation=None) -> Tensor");
  m.def(
      "_conv2d_traced(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, SymInt groups, str? activation) -> (Tensor output, Tensor switches)");
  // With `activated`, the mask of a fused ReLU, the gradient passes where its bit is set.
  m.def(
      "conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, SymInt groups, bool[3] output_mask, Tensor? activated=None, "
      "Tensor? switches=None) -> (Tensor, Tensor, Tensor)");
  // A dense block. A layer's parameters are weight and bias of its batch norm, weight and bias of its convolution; mean
  // and var (float64) are those of what the last layer reads. Statistics: mean and var in training, else the running
  // ones of each layer. The gradients: of the input, then of the parameters.
  m.def(
      "dense_block_train(Tensor input, Tensor[] parameters, float[] eps) -> (Tensor features, Tensor mean, Tensor "
      "var)");
  m.def(
      "_dense_block_train_traced(Tensor input, Tensor[] parameters, float[] eps) -> (Tensor features, Tensor mean, "
      "Tensor var, Tensor switches)");
  m.def("dense_block_infer(Tensor input, Tensor[] statistics, Tensor[] parameters, float[] eps) -> Tensor");
  m.def(
      "_dense_block_infer_traced(Tensor input, Tensor[] statistics, Tensor[] parameters, float[] eps) -> "
      "(Tensor features, Tensor switches)");
  m.def(
      "dense_block_train_backward(Tensor grad_output, Tensor features, Tensor[] statistics, Tensor[] parameters, "
      "float[] eps, bool[] output_mask, Tensor? switches=None) -> Tensor[]");
  m.def(
      "dense_block_infer_backward(Tensor grad_output, Tensor features, Tensor[] statistics, Tensor[] parameters, "
      "float[] eps, bool[] output_mask, Tensor? switches=None) -> Tensor[]");
  // Of a ReLU's output, one bit an element, set where the gradient passes: [rows, ceil(channels / 8)], the rows in NHWC
  // order.
  m.def("_relu_mask(Tensor output) -> Tensor");
  // Pooling. Offsets say which tap of a window won, kh * kernel_w + kw: channels_last, uint8 up to 256 taps, else
  // int32.
  m.def(
      "max_pool2d(Tensor input, SymInt[2] kernel_size, SymInt[2] stride=[], SymInt[2] padding=0, SymInt[2] dilation=1, "
      "bool ceil_mode=False) -> Tensor");
  m.def(
      "max_pool2d_with_indices(Tensor input, SymInt[2] kernel_size, SymInt[2] stride=[], SymInt[2] padding=0, "
      "SymInt[2] dilation=1, bool ceil_mode=False) -> (Tensor, Tensor)");
  m.def(
      "_max_pool2d_train(Tensor input, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, "
      "bool ceil_mode) -> (Tensor output, Tensor offsets)");
  m.def(
      "_max_pool2d_indices(Tensor offsets, SymInt[4] input_size, SymInt[2] kernel_size, SymInt[2] stride, "
      "SymInt[2] padding, SymInt[2] dilation, bool ceil_mode, MemoryFormat memory_format) -> Tensor");
  m.def(
      "_max_pool2d_gather(Tensor values, Tensor offsets, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, bool ceil_mode) -> Tensor");
  m.def(
      "max_pool2d_backward(Tensor grad_output, Tensor offsets, SymInt[4] input_size, SymInt[2] kernel_size, "
      "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, bool ceil_mode, MemoryFormat memory_format) -> Tensor");
  m.def(
      "avg_pool2d(Tensor input, SymInt[2] kernel_size, SymInt[2] stride=[], SymInt[2] padding=0, bool ceil_mode=False, "
      "bool count_include_pad=True, SymInt? divisor_override=None) -> Tensor");
  m.def(
      "avg_pool2d_backward(Tensor grad_output, SymInt[4] input_size, SymInt[2] kernel_size, SymInt[2] stride, "
      "SymInt[2] padding, bool ceil_mode, bool count_include_pad, SymInt? divisor_override, "
      "MemoryFormat memory_format) -> Tensor");
  m.def("adaptive_avg_pool2d(Tensor input, SymInt[2] output_size) -> Tensor");
  m.def("adaptive_avg_pool2d_backward(Tensor grad_output, SymInt[4] input_size, MemoryFormat memory_format) -> Tensor");
}
