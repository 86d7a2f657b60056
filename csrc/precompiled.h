// The torch headers that the torch-facing files share, parsed once a build. torch/extension.h and torch/all.h stay out:
// they cost about a minute a file. CMake adds the autograd header for the files in autograd/.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>
