// The switches a user can set (fastcnn.backends), one copy a thread, and the record of kernels that ran.
#pragma once
#include <string>

#include "shared.h"

namespace fastcnn::backends {

struct Switches {
  bool fallback = true;  // may ATen's own op run where no kernel of ours covers the case
};

// The calling thread's switches.
Switches& current();

// Restores a forward's switches for its backward, which may run in another thread.
class Guard {
 public:
  explicit Guard(const Switches& switches) : previous_(current()) { current() = switches; }
  ~Guard() { current() = previous_; }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

 private:
  Switches previous_;
};

// The kernel record: off, it costs one load. Names come one a call of an op, in order.
FASTCNN_SHARED void record_kernel(const char* name);
void set_recording(bool on);     // starting clears the record
std::string recorded_kernels();  // one name a line

}  // namespace fastcnn::backends
