// Layers of a compiled network (see program.h): steps over values in one block of memory, and the constants that they
// need. Running changes nothing but what it keeps for later runs, so that threads may share a plan.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "arena.h"
#include "steps.h"

namespace fastcnn::plan {

class Plan {
 public:
  // Fails where a number is wrong: a plan that is made can be run.
  Plan(const std::vector<std::vector<int64_t>>& values, const std::vector<std::vector<int64_t>>& steps,
       std::vector<at::Tensor> constants, int64_t arena);

  // float32 CPU tensors of the inputs' shapes and one batch size; channels_last results.
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs);
  size_t inputs() const { return spec_.inputs.size(); }
  size_t outputs() const { return spec_.outputs.size(); }
  // One line a step: what it computes, and by which kernel.
  std::vector<std::string> describe() const;

 private:
  int64_t check_inputs(const std::vector<at::Tensor>& inputs) const;
  std::vector<at::Tensor> make_outputs(int64_t batch, const at::TensorOptions& options) const;

  Spec spec_;
  std::vector<std::unique_ptr<Step>> steps_;
  ArenaPool arenas_;
};

}  // namespace fastcnn::plan
