// Which kernels this CPU can run. Detected once; FASTCNN_CPU_CAPABILITY may lower the choice, never raise it.
#pragma once
#include "kernels/kernel_table.h"

namespace fastcnn::cpu {

const KernelTable& kernels();       // the table in use
const char* detected_capability();  // what the CPU has: "baseline", "avx2", "avx512" or "avx512_bf16"

}  // namespace fastcnn::cpu
