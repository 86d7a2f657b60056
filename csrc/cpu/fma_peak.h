// How much the CPU could compute: what benchmarks compare with.
#pragma once

namespace fastcnn::cpu {

// float32 GFLOP/s of torch's threads together, on registers alone.
double fma_gflops();

}  // namespace fastcnn::cpu
