// A compiled network as a whole: plans, and torch's operators between them, one after the other in one call.
#pragma once
#include <ATen/core/ivalue.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "operator.h"
#include "plan.h"

namespace fastcnn::plan {

// What a caller passes: name, sizes without the batch, and dtype.
using Input = std::tuple<std::string, std::vector<int64_t>, at::ScalarType>;

class Program {
 public:
  // The first slots are the inputs. A record is an operator's (see operator.h), or a plan's: [0, plan, slots of its
  // inputs..., slots of its outputs...]. `outputs` are slots, `batch` the one that it takes, or 0 for any. Fails where
  // a number is wrong: a program that is made can be run.
  Program(std::vector<Input> inputs, int64_t batch, int64_t slots, const std::vector<std::vector<int64_t>>& records,
          const std::vector<std::shared_ptr<Plan>>& plans, const Literals& literals, std::vector<int64_t> outputs);

  // CPU tensors of the inputs' sizes and dtypes and one batch; tensors, and integers that come of sizes.
  c10::impl::GenericList run(const std::vector<at::Tensor>& inputs) const;
  // One line a step: a plan's, or the name of an operator.
  std::vector<std::string> describe() const;

 private:
  struct Segment {
    std::shared_ptr<Plan> plan;  // or else the operator
    std::unique_ptr<OperatorCall> call;
    std::vector<int64_t> reads, writes;
    std::vector<int64_t> done;  // slots that nothing reads any more
  };

  Segment read_plan(const std::vector<int64_t>& record, size_t number,
                    const std::vector<std::shared_ptr<Plan>>& plans) const;
  void check_inputs(const std::vector<at::Tensor>& inputs) const;
  void run_segments(Slots& slots) const;

  std::vector<Input> inputs_;
  int64_t batch_;
  std::vector<SlotType> types_;
  std::vector<Segment> segments_;
  std::vector<int64_t> outputs_;
  bool has_operators_ = false;
};

}  // namespace fastcnn::plan
