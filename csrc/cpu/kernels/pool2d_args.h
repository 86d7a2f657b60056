// Arguments of the pooling kernels: plain pointers and sizes.
#pragma once
#include <cstdint>

#define FASTCNN_POOL2D_KERNELS(KERNEL)
