// The torch headers that the torch-facing files share, parsed once a build. torch/extension.h and torch/all.h stay out:
// they cost about a minute a file.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
