// Which kernels this CPU can run. Detected once; FASTCNN_CPU_CAPABILITY may lower the choice for the process and
// backends::Switches::cpu_capability for a thread, never raise it.
#pragma once
#include "../common/backends.h"
#include "kernels/kernel_table.h"

namespace fastcnn::cpu {

// The table in use by the calling thread, and by the workers of its parallel_for (parallel.h).
const KernelTable& kernels();

const char* detected_capability();   // what the CPU has: "baseline", "avx2", ...
CpuCapability allowed_capability();  // the most that the CPU and the environment allow
const char* capability_name(CpuCapability capability);

}  // namespace fastcnn::cpu
