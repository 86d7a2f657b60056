// The kernels compiled for avx2; only the table leaves this file.
#define FASTCNN_ISA avx2
#include "vec_avx2.h"
// clang-format off
#include "kernels.h"
// clang-format on

namespace fastcnn::cpu {
const KernelTable& kernel_table_avx2() { return avx2::kTable; }
}  // namespace fastcnn::cpu
