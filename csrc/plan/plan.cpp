#include "plan.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>

#include "../cpu/memory.h"

namespace fastcnn::plan {
namespace {

constexpr int64_t kMostArena = int64_t{1} << 60;  // floats

struct Operation {
  const char* name;
  std::unique_ptr<Step> (*make)(StepReader&);
};
// By opcode.
constexpr Operation kOperations[] = {{"conv2d", make_conv2d},
                                     {"max_pool2d", make_max_pool2d},
                                     {"avg_pool2d", make_avg_pool2d},
                                     {"adaptive_avg_pool2d", make_adaptive_avg_pool2d},
                                     {"linear", make_linear},
                                     {"scale_shift", make_scale_shift},
                                     {"add", make_add},
                                     {"activation", make_activation},
                                     {"copy", make_copy},
                                     {"scale_images", make_scale_images},
                                     {"inverted_residual", make_inverted_residual}};
constexpr int64_t kOpcodes = static_cast<int64_t>(std::size(kOperations));

}  // namespace

Plan::Plan(const std::vector<std::vector<int64_t>>& values, const std::vector<std::vector<int64_t>>& steps,
           std::vector<at::Tensor> constants, int64_t arena)
    : spec_(read_spec(values, std::move(constants), arena)) {
  Written written;
  for (size_t i = 0; i < steps.size(); ++i) {
    TORCH_CHECK(!steps[i].empty() && steps[i][0] >= 0 && steps[i][0] < kOpcodes, "fastcnn plan: step ", i,
                ": expected an opcode of 0 to ", kOpcodes - 1, ", but got ", at::IntArrayRef(steps[i]));
    const Operation& operation = kOperations[steps[i][0]];
    StepReader reader(spec_, steps[i], i, operation.name);
    steps_.push_back(operation.make(reader));
    for (const int64_t v : reader.reads())
      reader.check(written.holds(spec_.values[v]), "expected value ", v,
                   " to have been written before and still to be ", "there: ", spec_.values[v].channels,
                   " channels from ", spec_.values[v].first_channel, " on, at ", spec_.values[v].place);
    for (const int64_t v : reader.rooms()) written.forget(spec_.values[v]);
    for (const int64_t v : reader.writes()) written.write(spec_.values[v]);
  }
  for (size_t i = 0; i < spec_.outputs.size(); ++i) {
    const Value whole = spec_.values[spec_.outputs[i]].whole();
    TORCH_CHECK(written.holds(whole), "fastcnn plan: expected output ", i, " of ", whole.channels,
                " channels to be written as a whole, but not all of its channels are");
  }
}

int64_t Plan::check_inputs(const std::vector<at::Tensor>& inputs) const {
  TORCH_CHECK(inputs.size() == spec_.inputs.size(), "fastcnn plan: expected ", spec_.inputs.size(), " inputs, but got ",
              inputs.size());
  const bool differentiates = at::GradMode::is_enabled();
  for (size_t i = 0; i < inputs.size(); ++i) {
    const at::Tensor& t = inputs[i];
    const Value& v = spec_.values[spec_.inputs[i]];
    TORCH_CHECK(t.defined() && t.layout() == at::kStrided && t.device().is_cpu() && t.scalar_type() == at::kFloat,
                "fastcnn plan: expected input ", i, " to be a float32 CPU tensor, but got ",
                t.defined() ? t.toString() : "none");
    const bool shaped = v.flat
                            ? t.dim() == 2 && t.size(1) == v.channels
                            : t.dim() == 4 && t.size(1) == v.channels && t.size(2) == v.height && t.size(3) == v.width;
    TORCH_CHECK(shaped, "fastcnn plan: expected input ", i, " of size ", v.shape(), ", but got ", t.sizes());
    TORCH_CHECK(t.size(0) == inputs[0].size(0), "fastcnn plan: expected inputs of one batch size, but got ",
                inputs[0].size(0), " and ", t.size(0), " (input ", i, ")");
    TORCH_CHECK(!t.is_conj() && !t.is_neg(), "fastcnn plan: expected input ", i, " without lazy negation");
    // Fake, zero and batched tensors and those of classes with a dispatch of their own.
    TORCH_CHECK(!t.key_set().has(c10::DispatchKey::Python) && t.has_storage() &&
                    (t.numel() == 0 || t.const_data_ptr() != nullptr),
                "fastcnn plan: expected input ", i, " to have memory of its own, but got ", t.toString());
    TORCH_CHECK(!differentiates || !t.requires_grad(), "fastcnn plan: expected input ", i,
                " not to require a gradient");
  }
  return inputs[0].size(0);
}

std::vector<at::Tensor> Plan::make_outputs(int64_t batch, const at::TensorOptions& options) const {
  std::vector<at::Tensor> outputs;
  for (const int64_t value : spec_.outputs) {
    const Value& v = spec_.values[value];
    outputs.push_back(v.flat
                          ? cpu::empty({batch, v.pitch}, options)
                          : cpu::empty({batch, v.pitch, v.height, v.width}, options, at::MemoryFormat::ChannelsLast));
  }
  return outputs;
}

std::vector<at::Tensor> Plan::run(const std::vector<at::Tensor>& inputs) {
  const int64_t batch = check_inputs(inputs);
  const at::AutoDispatchBelowAutograd no_autograd;
  std::vector<at::Tensor> outputs = make_outputs(batch, at::device(at::kCPU).dtype(at::kFloat));
  if (batch == 0) return outputs;
  int64_t floats = 0;
  TORCH_CHECK(!__builtin_mul_overflow(batch, spec_.arena, &floats) && floats < kMostArena,
              "fastcnn plan: expected a batch that memory holds, but got ", batch, " images of ", spec_.arena,
              " floats");
  const ArenaPool::Lease arena(arenas_, floats);
  Call call(spec_, inputs, outputs, arena.data(), batch);
  for (const auto& step : steps_) step->run(call);
  return outputs;
}

std::vector<std::string> Plan::describe() const {
  std::vector<std::string> lines;
  for (const auto& step : steps_) lines.push_back(step->describe());
  return lines;
}

}  // namespace fastcnn::plan
