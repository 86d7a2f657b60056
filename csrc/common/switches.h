// The switches as a tensor. A traced graph (torch.compile) runs no autograd node, so the forward's op itself gives them
// to the backward's, as an output that the graph saves like any other.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/tensor.h>

#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "backends.h"

namespace fastcnn::backends {

// More than there are switches: compiled graphs, which torch keeps in files, must not know how many there are.
constexpr size_t kSwitchValues = 32;

inline std::vector<int64_t> to_values(const Switches& switches) {
#define FASTCNN_SAVE(name, Type, initial) static_cast<int64_t>(switches.name),
  std::vector<int64_t> values{FASTCNN_SWITCHES(FASTCNN_SAVE)};
#undef FASTCNN_SAVE
  TORCH_INTERNAL_ASSERT(values.size() <= kSwitchValues);
  values.resize(kSwitchValues);
  return values;
}

inline Switches from_values(const int64_t* values) {
#define FASTCNN_LOAD(name, Type, initial) static_cast<Type>(*values++),
  return {FASTCNN_SWITCHES(FASTCNN_LOAD)};
#undef FASTCNN_LOAD
}

// An implementation whose last result is the switches that it ran under.
template <auto Implementation>
struct GivingSwitches;
template <typename Result, typename... Args, Result (*Implementation)(Args...)>
struct GivingSwitches<Implementation> {
  static auto call(Args... args) {
    const auto as_tuple = [](auto result) {
      if constexpr (std::is_same_v<Result, at::Tensor>) {
        return std::make_tuple(result);
      } else {
        return result;
      }
    };
    return std::tuple_cat(as_tuple(Implementation(std::forward<Args>(args)...)),
                          std::make_tuple(at::tensor(to_values(current()), at::kLong)));
  }
};

// An implementation whose last argument is the switches to run under, if not the thread's.
template <auto Implementation>
struct TakingSwitches;
template <typename Result, typename... Args, Result (*Implementation)(Args...)>
struct TakingSwitches<Implementation> {
  static Result call(Args... args, const std::optional<at::Tensor>& switches) {
    std::optional<Guard> guard;
    if (switches.has_value()) guard.emplace(from_values(switches->const_data_ptr<int64_t>()));
    return Implementation(std::forward<Args>(args)...);
  }
};

}  // namespace fastcnn::backends
