#include "checks.h"

namespace fastcnn::checks {
namespace {

constexpr const char* kOp = "fastcnn::batch_norm: ";

bool given(const std::optional<at::Tensor>& t) { return t.has_value() && t->defined(); }

bool is_half(at::ScalarType dtype) { return dtype == at::kBFloat16 || dtype == at::kHalf; }

// Weight, bias and statistics: one value a channel, all of input's dtype, or all float32 where input is of a half type.
class PerChannelCheck {
 public:
  explicit PerChannelCheck(const at::Tensor& input) : input_(input) {}

  void operator()(const std::optional<at::Tensor>& t, const char* name) {
    if (!given(t)) return;
    TORCH_CHECK(t->dim() == 1 && t->size(0) == input_.size(1), kOp, name, " should contain ", input_.size(1),
                " elements not ", t->numel(), "; got ", name, " of size ", t->sizes(), " for input of size ",
                input_.sizes());
    TORCH_CHECK(t->device() == input_.device(), kOp, "Expected all tensors to be on the same device, but got input on ",
                input_.device(), " and ", name, " on ", t->device(), ": it is not on the expected device");
    if (!at::isFloatingType(input_.scalar_type())) return;  // no kernel takes it: torch's own says so
    const auto dtype = t->scalar_type();
    TORCH_CHECK(dtype == input_.scalar_type() || (dtype == at::kFloat && is_half(input_.scalar_type())), kOp,
                "mixed dtype: input of type ", input_.scalar_type(), " expects parameter to have scalar type of ",
                input_.scalar_type(), is_half(input_.scalar_type()) ? " or Float" : "", ", but ", name, " has ", dtype);
    TORCH_CHECK(!dtype_.has_value() || *dtype_ == dtype, kOp, "mixed dtype: expected scalar type ",
                dtype_.value_or(dtype), " but found ", dtype, " in ", name);
    dtype_ = dtype;
  }

 private:
  const at::Tensor& input_;
  std::optional<at::ScalarType> dtype_;
};

void check_device(const at::Tensor& t, const char* name, const at::Tensor& other, const char* other_name) {
  TORCH_CHECK(t.device() == other.device(), kOp, "Expected all tensors to be on the same device, but got ", other_name,
              " on ", other.device(), " and ", name, " on ", t.device());
}

void check_same(const at::Tensor& t, const char* name, const at::Tensor& input) {
  TORCH_CHECK(t.sizes() == input.sizes(), kOp, "expected ", name, " of input's size ", input.sizes(), ", but got ",
              name, " of size ", t.sizes());
  TORCH_CHECK(t.scalar_type() == input.scalar_type(), kOp, "mixed dtype: ", name, " type (", t.scalar_type(),
              ") and input type (", input.scalar_type(), ") should be the same");
  check_device(t, name, input, "input");
}

BatchNormGeometry geometry(const at::Tensor& input) {
  TORCH_CHECK(input.dim() >= 2, kOp, "expected at least 2D input [n, c, ...] (got ", input.dim(), "D input)");
  BatchNormGeometry g{};
  g.channels = input.size(1);
  g.rows = g.channels == 0 ? 0 : input.numel() / g.channels;
  g.mask_stride = ceil_div(g.channels, 8);
  return g;
}

}  // namespace

BatchNormGeometry batch_norm_train(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                                   const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& residual,
                                   double eps) {
  const BatchNormGeometry g = geometry(input);
  TORCH_CHECK_VALUE(g.rows != 1, kOp, "Expected more than 1 value per channel when training, got input size ",
                    input.sizes());
  TORCH_CHECK_VALUE(!(eps <= 0), "batch_norm eps must be positive during training, but got ", eps);
  PerChannelCheck check(input);
  check(weight, "weight");
  check(bias, "bias");
  if (given(residual)) check_same(*residual, "residual", input);
  return g;
}

BatchNormGeometry batch_norm_infer(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                   const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
                                   const std::optional<at::Tensor>& residual, double eps) {
  const BatchNormGeometry g = geometry(input);
  TORCH_CHECK_VALUE(!(eps < 0), "batch_norm eps must be non-negative, but got ", eps);
  PerChannelCheck check(input);
  check(mean, "running_mean");
  check(var, "running_var");
  check(weight, "weight");
  check(bias, "bias");
  if (given(residual)) check_same(*residual, "residual", input);
  return g;
}

BatchNormGeometry batch_norm_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& mean,
                                      const at::Tensor& var, const std::optional<at::Tensor>& weight,
                                      const at::Tensor& mask) {
  const BatchNormGeometry g = geometry(input);
  check_same(grad_output, "grad_output", input);
  // The batch's statistics of half types are float32 whatever the weight is.
  PerChannelCheck check_statistics(input), check_weight(input);
  check_statistics(mean, "mean");
  check_statistics(var, "var");
  check_weight(weight, "weight");
  const int64_t expected[] = {g.rows, g.mask_stride};
  const bool fits = mask.numel() == 0 || mask.sizes() == at::IntArrayRef(expected);
  TORCH_CHECK(mask.scalar_type() == at::kByte && fits && mask.is_contiguous(), kOp,
              "expected mask to be uint8, contiguous and of size ", at::IntArrayRef(expected),
              ", or [0] without ReLU, but got ", mask.scalar_type(), " of size ", mask.sizes(), " and strides ",
              mask.strides());
  check_device(mask, "mask", input, "input");
  return g;
}

void batch_norm_update(const at::Tensor& running_mean, const at::Tensor& running_var, const at::Tensor& mean,
                       const at::Tensor& var, int64_t rows) {
  TORCH_CHECK_VALUE(rows > 1, kOp, "Expected more than 1 value per channel when training, but got ", rows);
  for (const auto& [running, batch] : {std::pair{running_mean, mean}, std::pair{running_var, var}}) {
    TORCH_CHECK(running.sizes() == batch.sizes(), kOp, "expected running statistics of size ", batch.sizes(),
                ", but got ", running.sizes());
    check_device(running, "running statistics", batch, "the batch's");
  }
}

}  // namespace fastcnn::checks
