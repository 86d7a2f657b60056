// The activations, and arguments of the kernel that applies one to rows of channels; strides in elements.
#pragma once
#include <cstdint>

namespace fastcnn::cpu {

// The numbers are those of a compiled plan's records.
enum class Activation : int8_t { none, relu, sigmoid, relu6, hard_sigmoid, hard_swish, silu };

// Whether it is one that never decreases and that epilogues apply to their registers; others follow on what a tile or a
// row has stored.
inline constexpr bool is_rectifier(Activation f) {
  return f == Activation::none || f == Activation::relu || f == Activation::relu6;
}

// data[row][c] = activation(data[row][c]), in place.
template <typename T>
struct ActivationArgs {
  T* data;  // [rows, stride]
  int64_t stride, rows, channels;
  Activation activation;
};

}  // namespace fastcnn::cpu
