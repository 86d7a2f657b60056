// Every kernel, for the instruction set FASTCNN_ISA whose vec_*.h was included before; ends in the set's table.
#include "kernel_table.h"
// clang-format off
#include "bit_mask.h"
#include "tiles.h"
#include "activation.h"
#include "conv2d_direct.h"
#include "conv2d_pack.h"
#include "conv2d_planes.h"
#include "conv2d_planar.h"
#include "conv2d_grad_output.h"
#include "conv2d_grad_weight.h"
#include "conv2d_depthwise.h"
#include "conv2d_winograd.h"
#include "pool2d.h"
#include "fma_peak.h"
#include "batch_norm.h"
#include "linear.h"
// clang-format on

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

int tile_rows(int vectors) { return rows_for(vectors); }

template <typename T>
constexpr KernelSet<T> kernel_set() {
  return {Vec<T>::kWidth, kMaxVectors, &tile_rows, 1,
#define FASTCNN_ENTRY(name, Args) &name<T>,
          FASTCNN_ELEMENT_KERNELS(FASTCNN_ENTRY)
#undef FASTCNN_ENTRY
#define FASTCNN_ENTRY(name, Args) &name<Compute<T>>,
              FASTCNN_COMPUTE_KERNELS(FASTCNN_ENTRY)
#undef FASTCNN_ENTRY
  };
}

#define FASTCNN_STRING_(x) #x
#define FASTCNN_STRING(x) FASTCNN_STRING_(x)
constexpr KernelTable kTable{FASTCNN_STRING(FASTCNN_ISA), kernel_set<float>(), kernel_set<double>(),
                             kernel_set<BFloat16>(), kernel_set<Float16>()};

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
