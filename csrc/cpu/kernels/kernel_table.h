// The kernel table: one entry a kernel and element type, filled once per instruction set. The lists below are the only
// declaration: the table, the names that a user can ask for and the tests that must reach each kernel come from them.
#pragma once
#include <cstdint>

#include "activation_args.h"
#include "batch_norm_args.h"
#include "bit_mask_args.h"
#include "conv2d_args.h"
#include "conv2d_winograd_args.h"
#include "element.h"
#include "fma_peak_args.h"
#include "linear_args.h"
#include "pool2d_args.h"

// Name of the kernel and of its table slot, argument struct. These read or write tensors of every element type;
#define FASTCNN_ELEMENT_KERNELS(KERNEL)                               \
  KERNEL(conv2d_direct, Conv2dDirectArgs)                             \
  KERNEL(conv2d_pack, Conv2dPackArgs)                                 \
  KERNEL(conv2d_widen, Conv2dWidenArgs)                               \
  KERNEL(conv2d_planes, Conv2dPlanesArgs)                             \
  KERNEL(conv2d_planar, Conv2dPlanarArgs)                             \
  KERNEL(conv2d_grad_weight_taps, Conv2dGradWeightTapsArgs)           \
  KERNEL(conv2d_depthwise, Conv2dDepthwiseArgs)                       \
  KERNEL(conv2d_depthwise_grad_weight, Conv2dDepthwiseGradWeightArgs) \
  KERNEL(conv2d_winograd_input, Conv2dWinogradInputArgs)              \
  KERNEL(conv2d_winograd_grad_output, Conv2dWinogradInputArgs)        \
  KERNEL(conv2d_winograd_output, Conv2dWinogradOutputArgs)            \
  KERNEL(conv2d_grad_output, Conv2dGradOutputArgs)                    \
  KERNEL(relu_mask, ReluMaskArgs)                                     \
  FASTCNN_POOL2D_KERNELS(KERNEL)                                      \
  FASTCNN_BATCH_NORM_KERNELS(KERNEL)

// these only know the types that are computed in.
#define FASTCNN_COMPUTE_KERNELS(KERNEL)                             \
  KERNEL(conv2d_grad_weight, Conv2dGradWeightArgs)                  \
  KERNEL(conv2d_planar_grad_weight, Conv2dPlanarGradWeightArgs)     \
  KERNEL(conv2d_add_parts, Conv2dAddPartsArgs)                      \
  KERNEL(conv2d_winograd_weight, Conv2dWinogradWeightArgs)          \
  KERNEL(conv2d_winograd_grad_weight, Conv2dWinogradGradWeightArgs) \
  KERNEL(linear, LinearArgs)                                        \
  KERNEL(activation, ActivationArgs)                                \
  KERNEL(fma_peak, FmaPeakArgs)

#define FASTCNN_KERNELS(KERNEL) FASTCNN_ELEMENT_KERNELS(KERNEL) FASTCNN_COMPUTE_KERNELS(KERNEL)

namespace fastcnn::cpu {

template <typename T>
struct KernelSet {
  int width;             // of a register, in elements of the type that T is computed in
  int max_vectors;       // registers of lanes in a convolution's tile
  int (*rows_for)(int);  // pixels (or output channels) in a tile of that many registers
  int conv2d_pair;       // numbers in an element of what conv2d_direct and conv2d_grad_weight multiply: 1 or 2
#define FASTCNN_SLOT(name, Args) void (*name)(const Args<T>&);
  FASTCNN_ELEMENT_KERNELS(FASTCNN_SLOT)
#undef FASTCNN_SLOT
#define FASTCNN_SLOT(name, Args) void (*name)(const Args<Compute<T>>&);
  FASTCNN_COMPUTE_KERNELS(FASTCNN_SLOT)
#undef FASTCNN_SLOT
};

struct KernelTable {
  const char* isa;
  KernelSet<float> f32;
  KernelSet<double> f64;
  KernelSet<BFloat16> bf16;
  KernelSet<Float16> f16;

  template <typename T>
  const KernelSet<T>& of() const;
};
template <>
inline const KernelSet<float>& KernelTable::of<float>() const {
  return f32;
}
template <>
inline const KernelSet<double>& KernelTable::of<double>() const {
  return f64;
}
template <>
inline const KernelSet<BFloat16>& KernelTable::of<BFloat16>() const {
  return bf16;
}
template <>
inline const KernelSet<Float16>& KernelTable::of<Float16>() const {
  return f16;
}

const KernelTable& kernel_table_baseline();
#if defined(__x86_64__)
const KernelTable& kernel_table_avx2();
const KernelTable& kernel_table_avx512();
KernelTable kernel_table_avx512_bf16();
#endif

}  // namespace fastcnn::cpu
