#include "operator.h"

#include <ATen/ScalarOps.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/jit_type.h>

#include <array>
#include <optional>
#include <string_view>
#include <utility>

namespace fastcnn::plan {
namespace {

using c10::TypeKind;
using c10::TypePtr;

enum class Token : int64_t { none, absent, boolean, integer, number, text, named, slot, constant, list };
constexpr int64_t kLastToken = static_cast<int64_t>(Token::list);

// What the names of dtypes, layouts, ... stand for, and the type of argument that takes them.
struct Named {
  std::string_view name;
  TypeKind kind;
  int64_t value;
};
template <typename Enum>
constexpr Named named(std::string_view name, TypeKind kind, Enum value) {
  return {name, kind, static_cast<int64_t>(value)};
}
constexpr std::array kNamed{named("float32", TypeKind::ScalarTypeType, at::kFloat),
                            named("float64", TypeKind::ScalarTypeType, at::kDouble),
                            named("float16", TypeKind::ScalarTypeType, at::kHalf),
                            named("bfloat16", TypeKind::ScalarTypeType, at::kBFloat16),
                            named("bool", TypeKind::ScalarTypeType, at::kBool),
                            named("uint8", TypeKind::ScalarTypeType, at::kByte),
                            named("int8", TypeKind::ScalarTypeType, at::kChar),
                            named("int16", TypeKind::ScalarTypeType, at::kShort),
                            named("int32", TypeKind::ScalarTypeType, at::kInt),
                            named("int64", TypeKind::ScalarTypeType, at::kLong),
                            named("contiguous_format", TypeKind::MemoryFormatType, at::MemoryFormat::Contiguous),
                            named("channels_last", TypeKind::MemoryFormatType, at::MemoryFormat::ChannelsLast),
                            named("preserve_format", TypeKind::MemoryFormatType, at::MemoryFormat::Preserve),
                            named("strided", TypeKind::LayoutType, at::kStrided),
                            named("cpu", TypeKind::DeviceObjType, 0)};

// A number where an operator takes a tensor: of no dimension, and without a say in the result's dtype.
at::Tensor wrapped_number(const at::Scalar& number) {
  at::Tensor tensor = at::scalar_to_tensor(number);
  tensor.unsafeGetTensorImpl()->set_wrapped_number(true);
  return tensor;
}

// Where an argument comes from.
struct Argument {
  enum class From : int8_t { fixed, slot, slot_as_tensor, slot_as_number, list };
  From from = From::fixed;
  at::IValue fixed;
  int64_t slot = -1;
  TypePtr element;  // of a list: its elements'
  std::vector<Argument> items;

  at::IValue get(const Slots& slots) const {
    switch (from) {
      case From::fixed:
        return fixed;
      case From::slot:
        TORCH_CHECK(!slots[slot].isNone(), "fastcnn plan: expected a tensor in slot ", slot, ", but it is undefined");
        return slots[slot];
      case From::slot_as_tensor:
        return wrapped_number(slots[slot].toScalar());
      case From::slot_as_number:
        return slots[slot].toScalar().toDouble();
      case From::list:
        break;
    }
    c10::impl::GenericList list(element);
    list.reserve(items.size());
    for (const Argument& item : items) list.push_back(item.get(slots));
    return list;
  }
};

Argument fixed(at::IValue value) { return {Argument::From::fixed, std::move(value), -1, {}, {}}; }

// An operator of torch's dispatcher.
class DispatchedCall final : public OperatorCall {
 public:
  DispatchedCall(c10::OperatorHandle op, std::vector<Argument> arguments, bool list)
      : op_(std::move(op)), arguments_(std::move(arguments)), returns_list_(list) {}

  void run(Slots& slots) const override {
    torch::jit::Stack stack;
    stack.reserve(arguments_.size());
    for (const Argument& argument : arguments_) stack.push_back(argument.get(slots));
    op_.callBoxed(stack);
    if (returns_list_) {
      const std::vector<at::Tensor> results = stack.at(0).toTensorVector();
      stack.assign(results.begin(), results.end());
    }
    TORCH_CHECK(stack.size() == writes().size(), "fastcnn plan: expected ", writes().size(), " results of ", name(),
                ", but got ", stack.size());
    for (size_t i = 0; i < stack.size(); ++i) {
      const bool undefined = stack[i].isTensor() && !stack[i].toTensor().defined();
      slots[writes()[i]] = undefined ? at::IValue() : std::move(stack[i]);
    }
  }

 private:
  c10::OperatorHandle op_;
  std::vector<Argument> arguments_;
  bool returns_list_;
};

// Python's arithmetic of integers, as forward does it on sizes; an overflow is an error.
class IntegerCall final : public OperatorCall {
 public:
  using Function = bool (*)(int64_t, int64_t, int64_t*);  // true where there is no result
  IntegerCall(Function function, Argument a, Argument b) : function_(function), a_(std::move(a)), b_(std::move(b)) {}

  void run(Slots& slots) const override {
    const int64_t a = a_.get(slots).toInt(), b = b_.get(slots).toInt();
    int64_t result = 0;
    TORCH_CHECK(!function_(a, b, &result), "fastcnn plan: expected ", name(), " of integers with an integer of 64 bits",
                " as result, but got ", a, " and ", b);
    slots[writes()[0]] = result;
  }

 private:
  Function function_;
  Argument a_, b_;
};

bool floor_divide(int64_t a, int64_t b, int64_t* result) {
  if (b == 0 || (b == -1 && a == INT64_MIN)) return true;
  *result = a / b - (a % b != 0 && (a < 0) != (b < 0));
  return false;
}

IntegerCall::Function integer_function(std::string_view name) {
  if (name == "operator.mul") return [](int64_t a, int64_t b, int64_t* c) { return __builtin_mul_overflow(a, b, c); };
  if (name == "operator.add") return [](int64_t a, int64_t b, int64_t* c) { return __builtin_add_overflow(a, b, c); };
  if (name == "operator.sub") return [](int64_t a, int64_t b, int64_t* c) { return __builtin_sub_overflow(a, b, c); };
  if (name == "operator.floordiv") return floor_divide;
  return nullptr;
}

c10::OperatorHandle find(const std::string& name) {
  const size_t first = name.find('.'), last = name.rfind('.');
  std::optional<c10::OperatorHandle> found;
  if (first != std::string::npos && first < last) {
    const std::string overload = name.substr(last + 1);
    found = c10::Dispatcher::singleton().findSchema(
        {name.substr(0, first) + "::" + name.substr(first + 1, last - first - 1),
         overload == "default" ? "" : overload});
  }
  TORCH_CHECK(found.has_value(), "fastcnn plan: expected an operator of torch's, but got ", name);
  return *found;
}

}  // namespace

class OperatorReader {
 public:
  OperatorReader(const std::vector<int64_t>& record, const Literals& literals, const std::vector<SlotType>& types)
      : record_(record), literals_(literals), types_(types) {}

  std::unique_ptr<OperatorCall> read() {
    name_ = literals_.texts[place("name", literals_.texts.size())];
    const bool several = next("whether it returns several", 0, 1) != 0;
    const int64_t count = next("number of outputs", 0, static_cast<int64_t>(types_.size()));
    std::vector<int64_t> writes;
    for (int64_t i = 0; i < count; ++i) writes.push_back(place("output", types_.size()));
    std::vector<SlotType> results{SlotType::integer};
    std::unique_ptr<OperatorCall> call;
    if (const auto function = integer_function(name_)) {
      check(!several && count == 1, "expected one result, but got ", count);
      wanted_ = "a";
      Argument a = read_argument(c10::IntType::get(), {});
      wanted_ = "b";
      Argument b = read_argument(c10::IntType::get(), {});
      call = std::make_unique<IntegerCall>(function, std::move(a), std::move(b));
    } else {
      call = read_dispatched(several, count, results);
    }
    check(next_ == record_.size(), "expected arguments of ", next_, " numbers, but got ", record_.size());
    call->name_ = name_, call->reads_ = std::move(reads_), call->writes_ = std::move(writes);
    call->results_ = std::move(results);
    return call;
  }

 private:
  template <typename... Args>
  void check(bool condition, const Args&... args) const {
    TORCH_CHECK(condition, "fastcnn plan: operator ", name_, ": ", args...);
  }
  int64_t next(const char* field, int64_t least, int64_t most) {
    check(next_ < record_.size(), "expected ", field, " as number ", next_, ", but got a record of ", record_.size(),
          " numbers");
    const int64_t number = record_[next_++];
    check(number >= least && number <= most, "expected ", field, " of ", least, " to ", most, ", but got ", number);
    return number;
  }
  int64_t place(const char* field, size_t size) { return next(field, 0, static_cast<int64_t>(size) - 1); }

  static SlotType slot_type(const c10::Type& type) {
    switch (type.kind()) {
      case TypeKind::TensorType:
        return SlotType::tensor;
      case TypeKind::IntType:
        return SlotType::integer;
      case TypeKind::FloatType:
      case TypeKind::BoolType:
      case TypeKind::NumberType:
        return SlotType::number;
      default:
        return SlotType::empty;
    }
  }

  std::unique_ptr<OperatorCall> read_dispatched(bool several, int64_t count, std::vector<SlotType>& results) {
    const c10::OperatorHandle op = find(name_);
    const c10::FunctionSchema& schema = op.schema();
    check(!schema.is_mutable(), "expected one that does not write to its arguments");
    const auto& returns = schema.returns();
    const auto* list = returns.size() == 1 ? returns[0].type()->castRaw<c10::ListType>() : nullptr;
    check(several == (list != nullptr || returns.size() != 1) &&
              (list != nullptr || static_cast<int64_t>(returns.size()) == count),
          "expected the results that it has, ", returns.size(), ", but got ", count);
    results.clear();
    for (int64_t i = 0; i < count; ++i)
      results.push_back(slot_type(list != nullptr ? *list->getElementType() : *returns[i].type()));
    for (const SlotType type : results)
      check(type == SlotType::tensor || (type != SlotType::empty && list == nullptr),
            "expected results that are tensors or numbers, but got ", schema);
    std::vector<Argument> arguments;
    for (const c10::Argument& wanted : schema.arguments()) {
      wanted_ = wanted.name();
      if (next_ < record_.size() && record_[next_] == static_cast<int64_t>(Token::absent)) {
        ++next_;
        check(wanted.default_value().has_value(), "expected argument '", wanted_, "', which has no default");
        arguments.push_back(fixed(*wanted.default_value()));
      } else {
        arguments.push_back(read_argument(wanted.real_type(), wanted.N()));
      }
    }
    return std::make_unique<DispatchedCall>(op, std::move(arguments), list != nullptr);
  }

  // An argument of a type; `repeated` is how often an operator repeats one number where it takes a list.
  Argument read_argument(const TypePtr& type, std::optional<int32_t> repeated) {
    const auto token = static_cast<Token>(next("kind of argument", 0, kLastToken));
    if (type->kind() == TypeKind::OptionalType) {
      if (token == Token::none) return fixed({});
      return read_value(token, type->castRaw<c10::OptionalType>()->getElementType(), repeated);
    }
    return read_value(token, type, repeated);
  }

  Argument read_value(Token token, const TypePtr& type, std::optional<int32_t> repeated) {
    if (type->kind() == TypeKind::ListType)
      return read_list(token, type->castRaw<c10::ListType>()->getElementType(), repeated);
    switch (token) {
      case Token::slot:
        return read_slot(*type);
      case Token::constant:
        fits(type->kind() == TypeKind::TensorType, *type, "a tensor");
        return fixed(literals_.tensors[place("tensor", literals_.tensors.size())]);
      case Token::boolean:
        return read_number(*type, next("boolean", 0, 1) != 0);
      case Token::integer:
        return read_number(*type, next("integer", INT64_MIN, INT64_MAX));
      case Token::number:
        return read_number(*type, literals_.numbers[place("number", literals_.numbers.size())]);
      case Token::text:
        fits(type->kind() == TypeKind::StringType, *type, "a text");
        return fixed(literals_.texts[place("text", literals_.texts.size())]);
      case Token::named:
        return read_named(*type);
      default:
        fits(false, *type, token == Token::list ? "a list" : "none");
        return {};
    }
  }

  Argument read_slot(const c10::Type& type) {
    const int64_t slot = place("slot", types_.size());
    check(types_[slot] != SlotType::empty, "expected slot ", slot, " to have been filled before");
    reads_.push_back(slot);
    Argument argument;
    argument.slot = slot;
    argument.from = Argument::From::slot;
    if (types_[slot] == SlotType::tensor) {
      fits(type.kind() == TypeKind::TensorType, type, "a tensor");
    } else if (type.kind() == TypeKind::TensorType) {
      argument.from = Argument::From::slot_as_tensor;
    } else if (type.kind() == TypeKind::FloatType) {
      argument.from = Argument::From::slot_as_number;
    } else {
      const bool is_number = types_[slot] == SlotType::number;
      fits(type.kind() == TypeKind::NumberType || (is_integer(type) && !is_number), type,
           is_number ? "a number" : "an integer");
    }
    return argument;
  }

  template <typename Number>
  Argument read_number(const c10::Type& type, Number number) const {
    if (type.kind() == TypeKind::TensorType) return fixed(wrapped_number(number));
    if (type.kind() == TypeKind::NumberType) return fixed(number);
    if constexpr (std::is_same_v<Number, bool>) {
      if (type.kind() == TypeKind::BoolType) return fixed(number);
      fits(is_integer(type), type, "a boolean");
      return fixed(static_cast<int64_t>(number));
    }
    if (type.kind() == TypeKind::FloatType) return fixed(static_cast<double>(number));
    fits((std::is_same_v<Number, int64_t>) && is_integer(type), type, "a number");
    return fixed(number);
  }

  Argument read_named(const c10::Type& type) {
    const std::string& name = literals_.texts[place("name", literals_.texts.size())];
    for (const Named& known : kNamed)
      if (known.name == name) {
        fits(known.kind == type.kind(), type, name.c_str());
        if (known.kind == TypeKind::DeviceObjType) return fixed(at::Device(at::kCPU));
        return fixed(known.value);
      }
    check(false, "expected the name of a dtype, a memory format, a layout or a device, but got ", name);
    return {};
  }

  Argument read_list(Token token, const TypePtr& type, std::optional<int32_t> repeated) {
    Argument list;
    list.from = Argument::From::list;
    list.element = is_integer(*type) ? TypePtr(c10::IntType::get()) : type;
    if (token != Token::list) {
      fits(repeated.has_value(), *c10::ListType::create(type), "one value");
      list.items.assign(static_cast<size_t>(*repeated), read_value(token, type, {}));
    } else {
      const int64_t count = next("length of a list", 0, static_cast<int64_t>(record_.size()));
      for (int64_t i = 0; i < count; ++i) list.items.push_back(read_argument(type, {}));
    }
    for (const Argument& item : list.items)
      if (item.from != Argument::From::fixed) return list;
    return fixed(list.get({}));
  }

  static bool is_integer(const c10::Type& type) {
    return type.kind() == TypeKind::IntType || type.kind() == TypeKind::SymIntType;
  }
  void fits(bool condition, const c10::Type& type, const char* what) const {
    check(condition, "expected argument '", wanted_, "' of type ", type.str(), ", but got ", what);
  }

  const std::vector<int64_t>& record_;
  const Literals& literals_;
  const std::vector<SlotType>& types_;
  size_t next_ = 1;  // the first number is the kind of record
  std::string name_, wanted_;
  std::vector<int64_t> reads_;
};

std::unique_ptr<OperatorCall> read_operator(const std::vector<int64_t>& record, const Literals& literals,
                                            const std::vector<SlotType>& types) {
  return OperatorReader(record, literals, types).read();
}

}  // namespace fastcnn::plan
