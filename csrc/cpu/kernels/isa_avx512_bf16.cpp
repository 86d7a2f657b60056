// The kernels that take bfloat16 as it is, for CPUs with AVX-512 BF16; all others are those of avx512.
#define FASTCNN_ISA avx512_bf16
#include "vec_avx512.h"
// clang-format off
#include "kernel_table.h"
#include "tiles.h"
#include "activation.h"
#include "conv2d_direct.h"
#include "conv2d_grad_weight.h"
#include "conv2d_pack.h"
// clang-format on

namespace fastcnn::cpu {

KernelTable kernel_table_avx512_bf16() {
  KernelTable table = kernel_table_avx512();
  table.isa = "avx512_bf16";
  table.bf16.conv2d_pair = 2;
  table.bf16.conv2d_direct = &avx512_bf16::conv2d_direct<BFloat16>;
  table.bf16.conv2d_pack = &avx512_bf16::conv2d_pack<BFloat16>;
  table.bf16.conv2d_widen = &avx512_bf16::conv2d_widen<BFloat16>;
  table.bf16.conv2d_grad_weight = &avx512_bf16::conv2d_grad_weight<BFloat16>;
  return table;
}

}  // namespace fastcnn::cpu
