// The choice of a convolution's algorithm by measuring all of them at the first use of a shape
// (fastcnn.backends.autotune). Kept for the process, and where FASTCNN_AUTOTUNE_CACHE names a file, for later ones.
#pragma once
#include <functional>

#include "conv2d_choice.h"

namespace fastcnn::cpu {

// Whether the switches ask for it: never where results must be the same in every run, or an algorithm is forced.
bool conv2d_autotunes(const Conv2dGeometry& g, at::ScalarType dtype);

// The fastest of the candidates; `run` computes the pass by one of them.
Conv2dAlgorithm conv2d_autotuned(Conv2dPass pass, const Conv2dGeometry& g, at::ScalarType dtype,
                                 const std::function<void(Conv2dAlgorithm)>& run);

}  // namespace fastcnn::cpu
