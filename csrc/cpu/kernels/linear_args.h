// Arguments of the product of a matrix and a vector.
#pragma once
#include <cstdint>

#include "activation_args.h"

namespace fastcnn::cpu {

// output[k] = activation(bias[k] + sum over i of weight[k][i] * input[i])
template <typename T>
struct LinearArgs {
  const T* input;   // [length]
  const T* weight;  // [outputs, length]
  const T* bias;    // [outputs] or null
  T* output;        // [outputs]
  int64_t outputs, length;
  Activation activation;
};

}  // namespace fastcnn::cpu
