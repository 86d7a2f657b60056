// The kernels compiled for any CPU of the architecture; only the table leaves this file.
#define FASTCNN_ISA baseline
#include "vec_baseline.h"
// clang-format off
#include "kernels.h"
// clang-format on

namespace fastcnn::cpu {
const KernelTable& kernel_table_baseline() { return baseline::kTable; }
}  // namespace fastcnn::cpu
