#include "fma_peak.h"

#include <chrono>

#include "../common/backends.h"
#include "capability.h"
#include "parallel.h"

namespace fastcnn::cpu {

double fma_gflops() {
  constexpr int64_t kRounds = 2'000'000;  // some 5 ms: long beside the start of the threads
  const KernelSet<float>& kernel = kernels().f32;
  const int64_t threads = at::get_num_threads();
  backends::record_kernel("fma_peak");
  const auto run = [&] {
    parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      float result = 0;
      for (int64_t i = begin; i < end; ++i) kernel.fma_peak({kRounds, &result});
    });
  };
  run();
  const auto started = std::chrono::steady_clock::now();
  run();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
  return static_cast<double>(threads * kRounds * kFmaPeakFlop * kernel.width) / seconds.count() / 1e9;
}

}  // namespace fastcnn::cpu
