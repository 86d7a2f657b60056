// Calls of torch's operators between plans: which operator, and where each argument comes from.
#pragma once
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace fastcnn::plan {

// What passes between plans and operators: tensors, integers that come of sizes, and other numbers.
enum class SlotType : int8_t { empty, tensor, integer, number };
using Slots = std::vector<at::IValue>;

// The texts, numbers and tensors that arguments name by their place.
struct Literals {
  std::vector<std::string> texts;
  std::vector<double> numbers;
  std::vector<at::Tensor> tensors;
};

// One call, made from a record: [1, place of the name, whether it returns several, number of outputs, slots of
// these..., arguments...]. A name is "namespace.operator.overload", or "operator." and mul, add, sub or floordiv of
// integers. There is an argument for each of the operator's, in order:
//   0: none    1: the default    2, boolean    3, integer    4, number's place    5, text's place
//   6, place of the name of a dtype, a memory format, a layout or a device    7, slot    8, tensor's place
//   9, count, that many arguments: a list
// Nothing in it is trusted; that the operator is harmless is the caller's to know.
class OperatorCall {
 public:
  virtual ~OperatorCall() = default;
  // Reads the slots that `reads` says, and fills those that `writes` says.
  virtual void run(Slots& slots) const = 0;

  const std::string& name() const { return name_; }
  const std::vector<int64_t>& reads() const { return reads_; }
  const std::vector<int64_t>& writes() const { return writes_; }
  const std::vector<SlotType>& results() const { return results_; }  // of `writes`

 protected:
  std::string name_;
  std::vector<int64_t> reads_, writes_;
  std::vector<SlotType> results_;

  friend class OperatorReader;
};

// Fails where a record is wrong for the operator or `types`, what the slots hold by then.
std::unique_ptr<OperatorCall> read_operator(const std::vector<int64_t>& record, const Literals& literals,
                                            const std::vector<SlotType>& types);

}  // namespace fastcnn::plan
