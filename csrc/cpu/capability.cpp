#include "capability.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace fastcnn::cpu {
namespace {

constexpr const char* kNames[] = {
#define FASTCNN_NAME(name) #name,
    FASTCNN_CPU_CAPABILITIES(FASTCNN_NAME)
#undef FASTCNN_NAME
};

CpuCapability detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return CpuCapability::avx512_bf16;
  return avx512 ? CpuCapability::avx512 : avx2 ? CpuCapability::avx2 : CpuCapability::baseline;
#else
  return CpuCapability::baseline;
#endif
}

// What the environment asks for; what it does not name sets no cap (the Python package refuses it on import).
CpuCapability environment_cap() {
  const char* asked = std::getenv("FASTCNN_CPU_CAPABILITY");
#define FASTCNN_MATCH(name) \
  if (asked != nullptr && std::strcmp(asked, #name) == 0) return CpuCapability::name;
  FASTCNN_CPU_CAPABILITIES(FASTCNN_MATCH)
#undef FASTCNN_MATCH
  return kHighestCapability;
}

}  // namespace

const char* capability_name(CpuCapability capability) { return kNames[static_cast<int>(capability)]; }

const char* detected_capability() { return capability_name(detect()); }

CpuCapability allowed_capability() {
  static const CpuCapability allowed = std::min(detect(), environment_cap());
  return allowed;
}

const KernelTable& kernels() {
#if defined(__x86_64__)
  switch (std::min(allowed_capability(), backends::current().cpu_capability)) {
    case CpuCapability::avx512_bf16: {
      static const KernelTable with_bf16 = kernel_table_avx512_bf16();
      return with_bf16;
    }
    case CpuCapability::avx512:
      return kernel_table_avx512();
    case CpuCapability::avx2:
      return kernel_table_avx2();
    case CpuCapability::baseline:
      break;
  }
#endif
  return kernel_table_baseline();
}

}  // namespace fastcnn::cpu
