#include "capability.h"

#include <cstdlib>
#include <cstring>

namespace fastcnn::cpu {
namespace {

constexpr const char* kLevels[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};
constexpr int kHighest = 4;

int detect_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 && __builtin_cpu_supports("avx512bf16") ? 3 : avx512 ? 2 : avx2 ? 1 : 0;
#else
  return 0;
#endif
}

// The level the environment asks for; what it does not name sets no cap (the Python package refuses it on import).
[[maybe_unused]] int cap_level() {
  const char* asked = std::getenv("FASTCNN_CPU_CAPABILITY");
  if (asked != nullptr)
    for (int level = 0; level <= kHighest; ++level)
      if (std::strcmp(asked, kLevels[level]) == 0) return level;
  return kHighest;
}

const KernelTable& choose() {
#if defined(__x86_64__)
  const int detected = detect_level(), cap = cap_level();
  const int level = detected < cap ? detected : cap;
  if (level >= 3) {
    static const KernelTable with_bf16 = kernel_table_avx512_bf16();
    return with_bf16;
  }
  if (level == 2) return kernel_table_avx512();
  if (level == 1) return kernel_table_avx2();
#endif
  return kernel_table_baseline();
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable& table = choose();
  return table;
}

const char* detected_capability() { return kLevels[detect_level()]; }

}  // namespace fastcnn::cpu
