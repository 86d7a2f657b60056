// Plans and programs as torch.classes.fastcnn.Plan and Program. The one file that includes torch/custom_class.h, which
// takes long to compile.
#include <torch/custom_class.h>

#include "program.h"

namespace fastcnn::plan {
namespace {

using Records = std::vector<std::vector<int64_t>>;

struct PlanClass final : torch::CustomClassHolder {
  PlanClass(const Records& values, const Records& steps, std::vector<at::Tensor> constants, int64_t arena)
      : plan(std::make_shared<Plan>(values, steps, std::move(constants), arena)) {}
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs) { return plan->run(inputs); }
  std::vector<std::string> describe() { return plan->describe(); }

  std::shared_ptr<Plan> plan;
};

using Plans = std::vector<c10::intrusive_ptr<PlanClass>>;

std::vector<std::shared_ptr<Plan>> shared(const Plans& plans) {
  std::vector<std::shared_ptr<Plan>> all;
  for (const auto& holder : plans) all.push_back(holder->plan);
  return all;
}

struct ProgramClass final : torch::CustomClassHolder {
  ProgramClass(std::vector<Input> inputs, int64_t batch, int64_t slots, const Records& records, const Plans& plans,
               std::vector<std::string> texts, std::vector<double> numbers, std::vector<at::Tensor> tensors,
               std::vector<int64_t> outputs)
      : program(std::move(inputs), batch, slots, records, shared(plans),
                {std::move(texts), std::move(numbers), std::move(tensors)}, std::move(outputs)) {}
  c10::List<at::IValue> run(const std::vector<at::Tensor>& inputs) { return program.run(inputs); }
  std::vector<std::string> describe() { return program.describe(); }

  Program program;
};

}  // namespace
}  // namespace fastcnn::plan

TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  using fastcnn::plan::PlanClass;
  using fastcnn::plan::Plans;
  using fastcnn::plan::ProgramClass;
  using fastcnn::plan::Records;
  m.class_<PlanClass>("Plan")
      .def(torch::init<const Records&, const Records&, std::vector<at::Tensor>, int64_t>())
      .def("run", &PlanClass::run)
      .def("describe", &PlanClass::describe);
  m.class_<ProgramClass>("Program")
      .def(torch::init<std::vector<fastcnn::plan::Input>, int64_t, int64_t, const Records&, const Plans&,
                       std::vector<std::string>, std::vector<double>, std::vector<at::Tensor>, std::vector<int64_t>>())
      .def("run", &ProgramClass::run)
      .def("describe", &ProgramClass::describe);
}
