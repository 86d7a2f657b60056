// The kernel table: one entry a kernel and element type, filled once per instruction set. The list below is the only
// declaration: the table, the names that a user can ask for and the tests that must reach each kernel come from it.
#pragma once
#include <cstdint>

#include "batch_norm_args.h"
#include "conv2d_args.h"
#include "conv2d_winograd_args.h"
#include "fma_peak_args.h"
#include "pool2d_args.h"

// name of the kernel and of its table slot, argument struct
#define FASTCNN_KERNELS(KERNEL)                                       \
  KERNEL(conv2d_direct, Conv2dDirectArgs)                             \
  KERNEL(conv2d_pack, Conv2dPackArgs)                                 \
  KERNEL(conv2d_planar, Conv2dPlanarArgs)                             \
  KERNEL(conv2d_grad_weight, Conv2dGradWeightArgs)                    \
  KERNEL(conv2d_grad_weight_taps, Conv2dGradWeightTapsArgs)           \
  KERNEL(conv2d_depthwise, Conv2dDepthwiseArgs)                       \
  KERNEL(conv2d_depthwise_grad_input, Conv2dDepthwiseArgs)            \
  KERNEL(conv2d_depthwise_grad_weight, Conv2dDepthwiseGradWeightArgs) \
  KERNEL(conv2d_winograd_input, Conv2dWinogradInputArgs)              \
  KERNEL(conv2d_winograd_grad_output, Conv2dWinogradInputArgs)        \
  KERNEL(conv2d_winograd_weight, Conv2dWinogradWeightArgs)            \
  KERNEL(conv2d_winograd_output, Conv2dWinogradOutputArgs)            \
  KERNEL(conv2d_winograd_grad_weight, Conv2dWinogradGradWeightArgs)   \
  KERNEL(conv2d_grad_output, Conv2dGradOutputArgs)                    \
  KERNEL(fma_peak, FmaPeakArgs)                                       \
  FASTCNN_POOL2D_KERNELS(KERNEL)                                      \
  FASTCNN_BATCH_NORM_KERNELS(KERNEL)

namespace fastcnn::cpu {

template <typename T>
struct KernelSet {
  int width;             // elements of T in a register
  int max_vectors;       // registers of lanes in a convolution's tile
  int (*rows_for)(int);  // pixels (or output channels) in a tile of that many registers
#define FASTCNN_SLOT(name, Args) void (*name)(const Args<T>&);
  FASTCNN_KERNELS(FASTCNN_SLOT)
#undef FASTCNN_SLOT
};

struct KernelTable {
  const char* isa;
  KernelSet<float> f32;
  KernelSet<double> f64;

  template <typename T>
  const KernelSet<T>& of() const {
    if constexpr (sizeof(T) == sizeof(float)) {
      return f32;
    } else {
      return f64;
    }
  }
};

const KernelTable& kernel_table_baseline();
#if defined(__x86_64__)
const KernelTable& kernel_table_avx2();
const KernelTable& kernel_table_avx512();
#endif

}  // namespace fastcnn::cpu
