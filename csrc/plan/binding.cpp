// The plan as torch.classes.fastcnn.Plan. The one file that includes torch/custom_class.h, which takes long to compile.
#include <torch/custom_class.h>

#include "plan.h"

namespace fastcnn::plan {
namespace {

using Records = std::vector<std::vector<int64_t>>;

struct PlanClass final : torch::CustomClassHolder {
  PlanClass(const Records& values, const Records& steps, std::vector<at::Tensor> constants, int64_t arena)
      : plan(values, steps, std::move(constants), arena) {}
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs) { return plan.run(inputs); }
  std::vector<std::string> describe() { return plan.describe(); }

  Plan plan;
};

}  // namespace
}  // namespace fastcnn::plan

TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  using fastcnn::plan::PlanClass;
  using fastcnn::plan::Records;
  m.class_<PlanClass>("Plan")
      .def(torch::init<const Records&, const Records&, std::vector<at::Tensor>, int64_t>())
      .def("run", &PlanClass::run)
      .def("describe", &PlanClass::describe);
}
