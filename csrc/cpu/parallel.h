// parallel_for over torch's threads, where the workers run under their caller's switches: kernels() in a worker is the
// caller's choice.
#pragma once
#include <ATen/Parallel.h>

#include "../common/backends.h"

namespace fastcnn::cpu {

template <typename Work>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Work& work) {
  const backends::Switches switches = backends::current();
  at::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    const backends::Guard guard(switches);
    work(first, last);
  });
}

}  // namespace fastcnn::cpu
