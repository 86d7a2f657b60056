// parallel_for over torch's threads, where the workers run under their caller's switches: kernels() in a worker is the
// caller's choice. Work too small for that stays in the caller's thread (SerialScope).
#pragma once
#include <ATen/Parallel.h>

#include "../common/backends.h"

namespace fastcnn::cpu {

// Whether parallel_for runs in the calling thread alone.
inline thread_local bool in_serial_scope = false;

class SerialScope {
 public:
  explicit SerialScope(bool serial) : previous_(in_serial_scope) { in_serial_scope = previous_ || serial; }
  ~SerialScope() { in_serial_scope = previous_; }
  SerialScope(const SerialScope&) = delete;
  SerialScope& operator=(const SerialScope&) = delete;

 private:
  bool previous_;
};

// The threads that a parallel_for may use here; within another one's work that is this one.
inline int64_t num_threads() { return in_serial_scope || at::in_parallel_region() ? 1 : at::get_num_threads(); }

template <typename Work>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Work& work) {
  if (in_serial_scope) {
    const at::internal::ThreadIdGuard first_thread(0);
    if (begin < end) work(begin, end);
    return;
  }
  const backends::Switches switches = backends::current();
  at::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    const backends::Guard guard(switches);
    work(first, last);
  });
}

}  // namespace fastcnn::cpu
