// Arguments of the measurement of a core's peak.
#pragma once
#include <cstdint>

namespace fastcnn::cpu {

// `rounds` rounds of kFmaPeakFlop multiplications and additions a lane, on registers alone.
template <typename T>
struct FmaPeakArgs {
  int64_t rounds;
  T* result;  // [1]: keeps the compiler from dropping the work
};
constexpr int kFmaPeakChains = 10;
constexpr int64_t kFmaPeakFlop = 2 * kFmaPeakChains;

}  // namespace fastcnn::cpu
