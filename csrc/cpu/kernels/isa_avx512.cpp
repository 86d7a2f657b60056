// The kernels compiled for avx512; only the table leaves this file.
#define FASTCNN_ISA avx512
#include "vec_avx512.h"
// clang-format off
#include "kernels.h"
// clang-format on

namespace fastcnn::cpu {
const KernelTable& kernel_table_avx512() { return avx512::kTable; }
}  // namespace fastcnn::cpu
