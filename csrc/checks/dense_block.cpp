#include "checks.h"

namespace fastcnn::checks {
namespace {

constexpr const char* kOp = "fastcnn::dense_block: ";

}  // namespace

std::vector<int64_t> dense_block(const at::Tensor& input, bool is_output, at::TensorList parameters,
                                 at::ArrayRef<double> eps) {
  TORCH_CHECK(!eps.empty() && parameters.size() == 4 * eps.size(), kOp,
              "expected four parameters a layer (weight and bias of its batch norm, weight and bias of its ",
              "convolution), but got ", parameters.size(), " for ", eps.size(), " layers");
  TORCH_CHECK(input.dim() == 4, kOp, "expected 4D input (got ", input.dim(), "D input)");
  std::vector<int64_t> channels{input.size(1)};
  for (size_t layer = 0; layer < eps.size(); ++layer) {
    const at::Tensor& weight = parameters[4 * layer + 2];
    TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3, kOp,
                "expected convolutions of 3x3, but got weight of size ", weight.sizes(), " in layer ", layer);
    const auto dtype = weight.scalar_type(), expected = input.scalar_type();
    const bool lower = expected == at::kFloat && (dtype == at::kBFloat16 || dtype == at::kHalf);
    TORCH_CHECK(dtype == expected || lower, kOp, "Input type (", expected, ") and weight type (", dtype,
                ") should be the same, or the input's float32 and the weight's bfloat16 or float16");
    channels.push_back(channels.back() + weight.size(0));
  }
  if (is_output) {
    const int64_t grown = channels.back() - channels.front();
    for (int64_t& c : channels) c -= grown;
    TORCH_CHECK(channels.front() > 0, kOp, "expected more than ", grown, " features, the sum of what the layers add, ",
                "but got features of size ", input.sizes());
  }
  return channels;
}

}  // namespace fastcnn::checks
