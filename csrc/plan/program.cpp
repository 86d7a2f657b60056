#include "program.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/jit_type.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <utility>

namespace fastcnn::plan {
namespace {

constexpr int64_t kMostSlots = int64_t{1} << 24;

}  // namespace

Program::Program(std::vector<Input> inputs, int64_t batch, int64_t slots,
                 const std::vector<std::vector<int64_t>>& records, const std::vector<std::shared_ptr<Plan>>& plans,
                 const Literals& literals, std::vector<int64_t> outputs)
    : inputs_(std::move(inputs)), batch_(batch), outputs_(std::move(outputs)) {
  const auto count = static_cast<int64_t>(inputs_.size());
  TORCH_CHECK(batch >= 0, "fastcnn plan: expected a batch of 0 or more, but got ", batch);
  TORCH_CHECK(count > 0 && slots >= count && slots < kMostSlots, "fastcnn plan: expected a slot for each of ", count,
              " inputs, at least one, but got ", slots, " slots");
  types_.assign(slots, SlotType::empty);
  std::fill_n(types_.begin(), count, SlotType::tensor);
  for (size_t i = 0; i < records.size(); ++i) {
    const std::vector<int64_t>& record = records[i];
    TORCH_CHECK(!record.empty() && (record[0] == 0 || record[0] == 1), "fastcnn plan: segment ", i,
                ": expected a plan's or an operator's record, but got ", at::IntArrayRef(record));
    Segment segment;
    if (record[0] == 0) {
      segment = read_plan(record, i, plans);
    } else {
      segment.call = read_operator(record, literals, types_);
      segment.reads = segment.call->reads(), segment.writes = segment.call->writes();
      has_operators_ = true;
    }
    for (size_t w = 0; w < segment.writes.size(); ++w) {
      const int64_t slot = segment.writes[w];
      TORCH_CHECK(types_[slot] == SlotType::empty, "fastcnn plan: segment ", i, ": expected slot ", slot,
                  " to be empty");
      types_[slot] = segment.call == nullptr ? SlotType::tensor : segment.call->results()[w];
    }
    segments_.push_back(std::move(segment));
  }
  std::vector<bool> needed(slots);
  for (const int64_t slot : outputs_) {
    TORCH_CHECK(slot >= 0 && slot < slots && types_[slot] != SlotType::empty, "fastcnn plan: expected outputs that ",
                "are filled, but got slot ", slot, " of ", slots);
    needed[slot] = true;
  }
  for (auto segment = segments_.rbegin(); segment != segments_.rend(); ++segment)
    for (const auto* used : {&segment->reads, &segment->writes})
      for (const int64_t slot : *used) {
        if (!needed[slot]) segment->done.push_back(slot);
        needed[slot] = true;
      }
}

Program::Segment Program::read_plan(const std::vector<int64_t>& record, size_t number,
                                    const std::vector<std::shared_ptr<Plan>>& plans) const {
  TORCH_CHECK(record.size() > 1 && record[1] >= 0 && record[1] < static_cast<int64_t>(plans.size()),
              "fastcnn plan: segment ", number, ": expected one of ", plans.size(), " plans, but got ",
              at::IntArrayRef(record));
  Segment segment;
  segment.plan = plans[record[1]];
  const size_t inputs = segment.plan->inputs(), outputs = segment.plan->outputs();
  TORCH_CHECK(record.size() == 2 + inputs + outputs, "fastcnn plan: segment ", number, ": expected ", inputs,
              " inputs and ", outputs, " outputs, but got ", at::IntArrayRef(record));
  for (size_t i = 2; i < record.size(); ++i) {
    const int64_t slot = record[i];
    TORCH_CHECK(slot >= 0 && slot < static_cast<int64_t>(types_.size()), "fastcnn plan: segment ", number,
                ": expected one of ", types_.size(), " slots, but got ", slot);
    TORCH_CHECK(i >= 2 + inputs || types_[slot] == SlotType::tensor, "fastcnn plan: segment ", number,
                ": expected a tensor in slot ", slot);
    (i < 2 + inputs ? segment.reads : segment.writes).push_back(slot);
  }
  return segment;
}

void Program::check_inputs(const std::vector<at::Tensor>& inputs) const {
  TORCH_CHECK(inputs.size() == inputs_.size(), "fastcnn plan: expected ", inputs_.size(), " inputs, but got ",
              inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const at::Tensor& t = inputs[i];
    const auto& [name, sizes, dtype] = inputs_[i];
    TORCH_CHECK(t.defined() && t.layout() == at::kStrided && t.device().is_cpu() && t.scalar_type() == dtype,
                "fastcnn plan: expected ", name, " to be a CPU tensor of scalar type ", dtype, ", but got ",
                t.defined() ? t.toString() : "none");
    TORCH_CHECK(t.dim() > 0 && t.sizes().slice(1) == at::IntArrayRef(sizes), "fastcnn plan: expected ", name,
                " of size [N, ...] with ", at::IntArrayRef(sizes), " after the batch, but got ", t.sizes());
    const int64_t batch = batch_ == 0 ? inputs[0].size(0) : batch_;
    TORCH_CHECK(t.size(0) == batch, "fastcnn plan: expected ", name, " of batch ", batch, ", but got ", t.sizes());
    TORCH_CHECK(!t.requires_grad() || !at::GradMode::is_enabled(), "fastcnn plan: expected ", name,
                " not to require a gradient");
  }
}

c10::impl::GenericList Program::run(const std::vector<at::Tensor>& inputs) const {
  check_inputs(inputs);
  Slots slots(types_.size());
  std::copy(inputs.begin(), inputs.end(), slots.begin());
  if (has_operators_) {
    const at::NoGradGuard no_grad;
    // As far as torch's operators go; one of Python's that turns autocast on for itself finds it off.
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
    run_segments(slots);
  } else {
    run_segments(slots);
  }
  c10::impl::GenericList results(c10::AnyType::get());
  results.reserve(outputs_.size());
  for (const int64_t slot : outputs_) results.push_back(slots[slot]);
  return results;
}

void Program::run_segments(Slots& slots) const {
  for (const Segment& segment : segments_) {
    if (segment.call != nullptr) {
      segment.call->run(slots);
    } else {
      std::vector<at::Tensor> inputs;
      for (const int64_t slot : segment.reads)
        inputs.push_back(slots[slot].isTensor() ? slots[slot].toTensor() : at::Tensor());
      std::vector<at::Tensor> outputs = segment.plan->run(inputs);
      for (size_t i = 0; i < outputs.size(); ++i) slots[segment.writes[i]] = std::move(outputs[i]);
    }
    for (const int64_t slot : segment.done) slots[slot] = {};
  }
}

std::vector<std::string> Program::describe() const {
  std::vector<std::string> lines;
  for (const Segment& segment : segments_) {
    const auto own = segment.plan == nullptr ? std::vector{segment.call->name()} : segment.plan->describe();
    lines.insert(lines.end(), own.begin(), own.end());
  }
  return lines;
}

}  // namespace fastcnn::plan
