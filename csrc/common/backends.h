// The switches a user can set (fastcnn.backends), one copy a thread, and the record of kernels that ran.
#pragma once
#include <cstdint>
#include <string>

#include "shared.h"

namespace fastcnn {

// A convolution's algorithms, by the names that users and records see. `automatic` leaves the choice to the rule.
#define FASTCNN_CONV2D_ALGORITHMS(A) A(automatic) A(direct) A(winograd_f4x3) A(winograd_f2x3) A(winograd_f2x5) A(aten)

enum class Conv2dAlgorithm : int8_t {
#define FASTCNN_ALGORITHM(name) name,
  FASTCNN_CONV2D_ALGORITHMS(FASTCNN_ALGORITHM)
#undef FASTCNN_ALGORITHM
};
const char* algorithm_name(Conv2dAlgorithm algorithm);

// The instruction sets that kernels are compiled for, each one including those before it.
#define FASTCNN_CPU_CAPABILITIES(C) C(baseline) C(avx2) C(avx512) C(avx512_bf16)

enum class CpuCapability : int8_t {
#define FASTCNN_CAPABILITY(name) name,
  FASTCNN_CPU_CAPABILITIES(FASTCNN_CAPABILITY)
#undef FASTCNN_CAPABILITY
};
constexpr CpuCapability kHighestCapability = CpuCapability::avx512_bf16;

}  // namespace fastcnn

namespace fastcnn::backends {

// Name, type and default of each switch.
#define FASTCNN_SWITCHES(S)                                                                                          \
  S(fallback, bool, true)         /* may ATen's own op run where it is faster, or no kernel of ours covers a case */ \
  S(winograd, bool, true)         /* may convolutions use Winograd's algorithm */                                    \
  S(autotune, bool, false)        /* may convolutions be measured at first use */                                    \
  S(batch_invariant, bool, false) /* must an image's result not depend on the batch that it comes in */              \
  S(memory_cache, bool, true)     /* may large blocks of memory be kept when they are freed */                       \
  S(conv2d_algorithm, fastcnn::Conv2dAlgorithm, fastcnn::Conv2dAlgorithm::automatic) /* forced where it applies */   \
  S(cpu_capability, fastcnn::CpuCapability, fastcnn::kHighestCapability)             /* the most that may be used */

struct Switches {
#define FASTCNN_SWITCH(name, Type, initial) Type name = initial;
  FASTCNN_SWITCHES(FASTCNN_SWITCH)
#undef FASTCNN_SWITCH

  bool operator==(const Switches&) const = default;
};

// The calling thread's switches.
FASTCNN_SHARED Switches& current();

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
