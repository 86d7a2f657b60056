// A dense block on the CPU: all features in one NHWC buffer, of which every layer reads the first channels and appends
// its own. Batch norm's statistics belong to a channel and not to a layer, so they are computed once for each feature.
// The backward pass computes each layer's normalised input again: one layer's at a time is in memory.
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <array>
#include <cmath>

#include "../checks/checks.h"
#include "../common/switches.h"
#include "../fallback.h"
#include "../ops.h"
#include "batch_norm.h"
#include "dtypes.h"
#include "memory.h"

namespace fastcnn::cpu {
namespace {

using at::ArrayRef;
using at::Tensor;
using at::TensorList;

constexpr auto kNhwc = at::MemoryFormat::ChannelsLast;
const std::array<c10::SymInt, 2> kPair{1, 1};  // stride, padding and dilation of every convolution

// A layer's parameters, and how many channels it reads.
struct Layer {
  const Tensor &norm_weight, &norm_bias, &conv_weight, &conv_bias;
  int64_t channels;
  double eps;
};

// What forward and backward share: the layers, their statistics, and memory for one layer's normalised input.
template <typename T>
class DenseBlock {
 public:
  static constexpr auto kDtype = c10::CppTypeToScalarType<T>::value;

  // `statistics` are mean and var of the first channels, once or once a layer, or nothing yet.
  DenseBlock(const Tensor& image, std::vector<int64_t> channels, TensorList statistics, TensorList parameters,
             ArrayRef<double> eps)
      : channels_(std::move(channels)),
        parameters_(parameters),
        eps_(eps),
        n_(image.size(0)),
        h_(image.size(2)),
        w_(image.size(3)),
        options_(image.options().memory_format(at::MemoryFormat::Contiguous)) {
    for (size_t i = 0; i + 1 < statistics.size(); i += 2)
      moments_.push_back({channel_values(statistics[i], statistics[i].numel(), 0),
                          channel_values(statistics[i + 1], statistics[i + 1].numel(), 0)});
  }

  int64_t layers() const { return static_cast<int64_t>(eps_.size()); }
  int64_t read_channels() const { return channels_[layers() - 1]; }
  Layer layer(int64_t i) const {
    const Tensor* p = &parameters_[4 * i];
    return {p[0], p[1], p[2], p[3], channels_[i], eps_[i]};
  }
  BatchNormGeometry geometry(int64_t channels) const { return {n_ * h_ * w_, channels, ceil_div(channels, 8)}; }
  const Moments& moments(int64_t i) const { return moments_.size() == 1 ? moments_[0] : moments_[i]; }
  // Features [first, first + count) of a tensor that holds them all.
  Tensor part(const Tensor& features, int64_t first, int64_t count) const { return features.narrow(1, first, count); }
  Tensor image(int64_t channels, at::ScalarType dtype) const {
    return empty({n_, channels, h_, w_}, options_.dtype(dtype).memory_format(kNhwc));
  }

  // The batch's moments of features [first, first + count), appended to those of the features before.
  void append_moments(const Tensor& features, int64_t first, int64_t count) {
    if (moments_.empty()) moments_.emplace_back();
    const Tensor rows = rows_of(part(features, first, count), kDtype);
    const Moments added = batch_norm_moments<T>(geometry(count), const_rows<T>(rows));
    moments_[0].mean.insert(moments_[0].mean.end(), added.mean.begin(), added.mean.end());
    moments_[0].var.insert(moments_[0].var.end(), added.var.begin(), added.var.end());
  }

  // relu(batch_norm(features)) of a layer, in the convolution's dtype, and its mask where that is defined. Valid until
  // the next call.
  Tensor normalised(const Tensor& features, int64_t i, const Tensor& mask) {
    const Layer l = layer(i);
    if (!scratch_.defined()) scratch_ = empty({n_ * h_ * w_ * read_channels()}, options_.dtype(kDtype));
    const Tensor result =
        scratch_.narrow(0, 0, n_ * h_ * w_ * l.channels).view({n_, h_, w_, l.channels}).permute({0, 3, 1, 2});
    const Tensor rows = rows_of(part(features, 0, l.channels), kDtype);
    batch_norm_apply<T>(geometry(l.channels), const_rows<T>(rows), moments(i), l.norm_weight, l.norm_bias, {}, l.eps,
                        /*relu=*/true, {result.mutable_data_ptr<T>(), l.channels},
                        mask.defined() ? mask.mutable_data_ptr<uint8_t>() : nullptr);
    return result.to(l.conv_weight.scalar_type());
  }
  void free_scratch() { scratch_ = Tensor(); }

 private:
  std::vector<int64_t> channels_;
  TensorList parameters_;
  ArrayRef<double> eps_;
  int64_t n_, h_, w_;
  at::TensorOptions options_;
  std::vector<Moments> moments_;
  Tensor scratch_;
};

Tensor in_format(const Tensor& features, const Tensor& input, const Tensor& weight) {
  const bool nhwc = input.suggest_memory_format() == kNhwc || weight.suggest_memory_format() == kNhwc;
  return features.contiguous(nhwc ? kNhwc : at::MemoryFormat::Contiguous);
}

// (features, mean, var); without statistics by the batch's own, which are mean and var of what the layers read.
template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& input, TensorList statistics, TensorList parameters,
                                           ArrayRef<double> eps) {
  const auto channels = checks::dense_block(input, /*is_output=*/false, parameters, eps);
  const bool training = statistics.empty();
  DenseBlock<T> block(input, channels, statistics, parameters, eps);
  const Tensor features = block.image(channels.back(), input.scalar_type());
  block.part(features, 0, channels[0]).copy_(input);
  for (int64_t i = 0; i < block.layers(); ++i) {
    const Layer l = block.layer(i);
    const Tensor read = block.part(features, 0, l.channels);
    if (training) {
      checks::batch_norm_train(read, l.norm_weight, l.norm_bias, std::nullopt, l.eps);
      const int64_t known = i == 0 ? 0 : channels[i - 1];
      if (features.numel() > 0) block.append_moments(features, known, l.channels - known);
    } else {
      checks::batch_norm_infer(read, statistics[2 * i], statistics[2 * i + 1], l.norm_weight, l.norm_bias, std::nullopt,
                               l.eps);
    }
    if (features.numel() == 0) continue;
    block.part(features, l.channels, channels[i + 1] - l.channels)
        .copy_(ops::conv2d(block.normalised(features, i, Tensor()), l.conv_weight, l.conv_bias, kPair, kPair, kPair, 1,
                           std::nullopt));
  }
  const Tensor output = in_format(features, input, parameters[2]);
  if (!training) return {output, Tensor(), Tensor()};
  const std::vector<double> none(block.read_channels(), 0);
  const bool empty = features.numel() == 0;
  return {output, channel_tensor(empty ? none : block.moments(0).mean, input, at::kDouble),
          channel_tensor(empty ? none : block.moments(0).var, input, at::kDouble)};
}

// The gradient by the features, layer by layer from the last one. Batch norm's gradient is, for each channel, linear in
// the gradient that arrives and in the input. The terms in the input are the same for all layers but for factors, which
// are summed in `later_` and applied once, when a feature's gradient is complete.
template <typename T>
class DenseBlockBackward {
 public:
  DenseBlockBackward(DenseBlock<T>& block, bool training, const Tensor& grad_output, const Tensor& features)
      : block_(block), training_(training), grad_output_(grad_output), features_(features) {
    const auto none = std::vector<double>(block.read_channels(), 0);
    later_ = {std::vector<double>(block.read_channels(), 1), none, none};
  }

  // The complete gradient of features [first, first + count), which all layers that read them have passed.
  Tensor complete(int64_t first, int64_t count, at::ScalarType dtype) const {
    if (first >= block_.read_channels()) return block_.part(grad_output_, first, count).to(dtype);
    const Tensor result = block_.image(count, DenseBlock<T>::kDtype);
    const Tensor grad = rows_of(block_.part(sum_, first, count), DenseBlock<T>::kDtype);
    const Tensor rows = rows_of(block_.part(features_, first, count), DenseBlock<T>::kDtype);
    const auto from = [&](const std::vector<double>& v) {
      return std::vector<double>(v.begin() + first, v.begin() + first + count);
    };
    batch_norm_grad_input<T>(block_.geometry(count), const_rows<T>(grad),
                             training_ ? const_rows<T>(rows) : Rows<const T>{}, from(block_.moments(0).mean), nullptr,
                             {from(later_.scale), from(later_.slope), from(later_.offset)},
                             {result.template mutable_data_ptr<T>(), count}, nullptr);
    return result.to(dtype);
  }

  // Adds what layer i passes on to the features that it reads, and gives its batch norm's gradients.
  GradSums add(int64_t i, const Tensor& grad_normalised, const Tensor& mask) {
    constexpr auto dtype = DenseBlock<T>::kDtype;
    const Layer l = block_.layer(i);
    const BatchNormGeometry g = block_.geometry(l.channels);
    const Moments& m = block_.moments(i);
    const Tensor grad = rows_of(grad_normalised, dtype), rows = rows_of(block_.part(features_, 0, l.channels), dtype);
    // The last layer's sum takes the place of its own gradient.
    const bool first = !sum_.defined();
    if (first) sum_ = grad.movedim(-1, 1);
    const Tensor addend = rows_of(block_.part(first ? grad_output_ : sum_, 0, l.channels), dtype);
    const std::vector<double> scale = batch_norm_scale(m, l.norm_weight, l.eps, l.channels);
    const GradSumsResult<T> result{
        scale, const_rows<T>(addend), {sum_.template mutable_data_ptr<T>(), block_.read_channels()}};
    GradSums sums = batch_norm_grad_sums<T>(g, const_rows<T>(grad), const_rows<T>(rows), m.mean,
                                            mask.const_data_ptr<uint8_t>(), result);
    if (training_) {
      const GradFactors factors = batch_norm_grad_factors(g, m, scale, sums, l.eps);
      for (int64_t c = 0; c < l.channels; ++c) {
        later_.slope[c] += factors.slope[c];
        later_.offset[c] += factors.offset[c];
      }
    }
    for (int64_t c = 0; c < l.channels; ++c) sums.product[c] /= std::sqrt(m.var[c] + l.eps);
    return sums;
  }

 private:
  DenseBlock<T>& block_;
  bool training_;
  const Tensor &grad_output_, &features_;
  Tensor sum_;  // [n, channels that the last layer reads, h, w]: the gradient but for later_'s slope and offset
  GradFactors later_;
};

// The gradients of the input and of the parameters in their order; [0] for those that are not wanted.
template <typename T>
std::vector<Tensor> backward(bool training, const Tensor& grad_output, const Tensor& features, TensorList statistics,
                             TensorList parameters, ArrayRef<double> eps, const c10::List<bool>& wanted) {
  const auto channels = checks::dense_block(features, /*is_output=*/true, parameters, eps);
  std::vector<Tensor> grads;
  while (grads.size() <= parameters.size()) grads.push_back(empty({0}, features.options()));
  if (features.numel() == 0) {
    for (size_t i = 0; i < grads.size(); ++i)
      if (wanted[i]) grads[i] = at::zeros_like(i == 0 ? features.narrow(1, 0, channels[0]) : parameters[i - 1]);
    return grads;
  }
  DenseBlock<T> block(features, channels, statistics, parameters, eps);
  const Tensor nhwc = features.contiguous(kNhwc);
  DenseBlockBackward<T> run(block, training, grad_output, nhwc);
  int64_t first_wanted = 0;
  while (first_wanted < static_cast<int64_t>(wanted.size()) && !wanted[first_wanted]) ++first_wanted;

  for (int64_t i = block.layers() - 1; i >= 0; --i) {
    const Layer l = block.layer(i);
    Tensor* grad = &grads[1 + 4 * i];
    const bool by_norm = wanted[1 + 4 * i] || wanted[2 + 4 * i], by_weight = wanted[3 + 4 * i],
               by_bias = wanted[4 + 4 * i], by_features = first_wanted < 1 + 4 * i || by_norm;
    if (!by_features && !by_weight && !by_bias) break;
    // 1. Of the convolution, whose input is computed again.
    const Tensor grad_conv = run.complete(l.channels, channels[i + 1] - l.channels, l.conv_weight.scalar_type());
    const BatchNormGeometry g = block.geometry(l.channels);
    const Tensor mask = empty({g.rows, g.mask_stride}, features.options().dtype(at::kByte));
    auto [grad_normalised, grad_weight, grad_bias] =
        ops::conv2d_backward(grad_conv, block.normalised(nhwc, i, mask), l.conv_weight, kPair, kPair, kPair, 1,
                             {by_features, by_weight, by_bias}, std::nullopt, std::nullopt);
    if (by_weight) grad[2] = grad_weight;
    if (by_bias) grad[3] = grad_bias;
    // 2. Of the batch norm.
    if (!by_features) break;
    const GradSums sums = run.add(i, grad_normalised, mask);
    if (wanted[1 + 4 * i]) grad[0] = channel_tensor(sums.product, features, l.norm_weight.scalar_type());
    if (wanted[2 + 4 * i]) grad[1] = channel_tensor(sums.grad, features, l.norm_bias.scalar_type());
  }
  block.free_scratch();
  if (wanted[0])
    grads[0] = run.complete(0, channels[0], features.scalar_type()).contiguous(features.suggest_memory_format());
  return grads;
}

void require_covered(const Tensor& t) {
  TORCH_CHECK_NOT_IMPLEMENTED(is_covered(t.scalar_type()), "fastcnn::dense_block: no kernel of fastcnn covers ",
                              t.scalar_type(), "; run the layers one by one");
}

std::tuple<Tensor, Tensor, Tensor> dense_block_train_cpu(const Tensor& input, TensorList parameters,
                                                         ArrayRef<double> eps) {
  require_covered(input);
  const auto run = input.scalar_type() == at::kDouble ? &forward<double> : &forward<float>;
  return run(input, {}, parameters, eps);
}

Tensor dense_block_infer_cpu(const Tensor& input, TensorList statistics, TensorList parameters, ArrayRef<double> eps) {
  require_covered(input);
  TORCH_CHECK(statistics.size() == 2 * eps.size(), "fastcnn::dense_block: expected running_mean and running_var of ",
              eps.size(), " layers, but got ", statistics.size(), " tensors");
  const auto run = input.scalar_type() == at::kDouble ? &forward<double> : &forward<float>;
  return std::get<0>(run(input, statistics, parameters, eps));
}

template <bool kTraining>
std::vector<Tensor> dense_block_backward_cpu(const Tensor& grad_output, const Tensor& features, TensorList statistics,
                                             TensorList parameters, ArrayRef<double> eps, c10::List<bool> output_mask) {
  require_covered(features);
  TORCH_CHECK(grad_output.sizes() == features.sizes() && output_mask.size() == parameters.size() + 1,
              "fastcnn::dense_block: expected grad_output of size ", features.sizes(), " and a mask of ",
              parameters.size() + 1, ", but got ", grad_output.sizes(), " and ", output_mask.size());
  const auto run = features.scalar_type() == at::kDouble ? &backward<double> : &backward<float>;
  return run(kTraining, grad_output, features, statistics, parameters, eps, output_mask);
}

}  // namespace
}  // namespace fastcnn::cpu

TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  using fastcnn::backends::GivingSwitches, fastcnn::backends::TakingSwitches;
  m.impl("dense_block_train", fastcnn::cpu::dense_block_train_cpu);
  m.impl("_dense_block_train_traced", GivingSwitches<fastcnn::cpu::dense_block_train_cpu>::call);
  m.impl("dense_block_infer", fastcnn::cpu::dense_block_infer_cpu);
  m.impl("_dense_block_infer_traced", GivingSwitches<fastcnn::cpu::dense_block_infer_cpu>::call);
  m.impl("dense_block_train_backward", TakingSwitches<fastcnn::cpu::dense_block_backward_cpu<true>>::call);
  m.impl("dense_block_infer_backward", TakingSwitches<fastcnn::cpu::dense_block_backward_cpu<false>>::call);
}
