// Arguments of the batch norm kernels: plain pointers and sizes.
#pragma once
#include <cstdint>

#define FASTCNN_BATCH_NORM_KERNELS(KERNEL)
