// Which algorithm a convolution takes: what the switches force or forbid, else the one of the least estimated time. The
// estimate is linear in a few counts; its coefficients are fitted by benchmarks/conv2d_rule.py.
#pragma once
#include <c10/core/ScalarType.h>

#include <array>
#include <vector>

#include "../common/backends.h"
#include "../common/geometry.h"

namespace fastcnn::cpu {

enum class Conv2dPass : int8_t { forward, grad_input, grad_weight };

// Problems solved one after the other, and millions of: multiplications and additions, elements of the transformed or
// copied input, of the output's transform, of the weights' transform.
using Conv2dCounts = std::array<double, 5>;

// Whether an algorithm computes this pass of a geometry at all. Depthwise layers have kernels of their own.
bool conv2d_applies(Conv2dPass pass, Conv2dAlgorithm algorithm, const Conv2dGeometry& g);

Conv2dCounts conv2d_counts(Conv2dPass pass, Conv2dAlgorithm algorithm, const Conv2dGeometry& g);
// The algorithms that apply and that the switches allow, in a fixed order.
std::vector<Conv2dAlgorithm> conv2d_candidates(Conv2dPass pass, const Conv2dGeometry& g, at::ScalarType dtype);
// `packed`: where the weights are packed or transformed already.
Conv2dAlgorithm choose_conv2d(Conv2dPass pass, const Conv2dGeometry& g, at::ScalarType dtype, bool packed = false);

}  // namespace fastcnn::cpu
