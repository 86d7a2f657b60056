// The doors that are no ops: build and CPU facts, switches, the kernel record. Plain C functions, called through
// ctypes, so that the library needs no Python headers and one build serves every Python version.
#include <algorithm>
#include <string>
#include <string_view>

#include "common/backends.h"
#include "cpu/capability.h"
#include "cpu/conv2d_choice.h"
#include "cpu/fma_peak.h"
#include "cpu/memory.h"

#define FASTCNN_API extern "C" __attribute__((visibility("default")))

// In use by the calling thread, what the CPU has, and the most that the CPU and the environment allow.
FASTCNN_API const char* fastcnn_cpu_capability() { return fastcnn::cpu::kernels().isa; }

FASTCNN_API const char* fastcnn_cpu_capability_detected() { return fastcnn::cpu::detected_capability(); }
FASTCNN_API const char* fastcnn_cpu_capability_allowed() {
  return fastcnn::cpu::capability_name(fastcnn::cpu::allowed_capability());
}

// The names of the kernels in the table, one a line.
FASTCNN_API const char* fastcnn_kernels() {
#define FASTCNN_NAME(name, Args) #name "\n"
  return FASTCNN_KERNELS(FASTCNN_NAME);
#undef FASTCNN_NAME
}

// The names of the switches, and in the order of their values of a convolution's algorithms and of the CPU's
// capabilities, one a line.
FASTCNN_API const char* fastcnn_switches() {
#define FASTCNN_NAME(name, Type, initial) #name "\n"
  return FASTCNN_SWITCHES(FASTCNN_NAME);
#undef FASTCNN_NAME
}
FASTCNN_API const char* fastcnn_conv2d_algorithms() {
#define FASTCNN_NAME(name) #name "\n"
  return FASTCNN_CONV2D_ALGORITHMS(FASTCNN_NAME);
#undef FASTCNN_NAME
}
FASTCNN_API const char* fastcnn_cpu_capabilities() {
#define FASTCNN_NAME(name) #name "\n"
  return FASTCNN_CPU_CAPABILITIES(FASTCNN_NAME);
#undef FASTCNN_NAME
}

// The calling thread's value of a switch; -1 where there is none of that name.
FASTCNN_API int fastcnn_get_switch(const char* asked) {
  const std::string_view name = asked;
#define FASTCNN_GET(which, Type, initial) \
  if (name == #which) return static_cast<int>(fastcnn::backends::current().which);
  FASTCNN_SWITCHES(FASTCNN_GET)
#undef FASTCNN_GET
  return -1;
}
FASTCNN_API void fastcnn_set_switch(const char* asked, int value) {
  const std::string_view name = asked;
#define FASTCNN_SET(which, Type, initial) \
  if (name == #which) fastcnn::backends::current().which = static_cast<Type>(value);
  FASTCNN_SWITCHES(FASTCNN_SET)
#undef FASTCNN_SET
}

// The choice of a convolution's algorithm, and the counts that it is made from, for a geometry in its struct's order.
FASTCNN_API int fastcnn_conv2d_applies(int pass, int algorithm, const fastcnn::Conv2dGeometry* g) {
  return fastcnn::cpu::conv2d_applies(static_cast<fastcnn::cpu::Conv2dPass>(pass),
                                      static_cast<fastcnn::Conv2dAlgorithm>(algorithm), *g);
}
FASTCNN_API void fastcnn_conv2d_counts(int pass, int algorithm, const fastcnn::Conv2dGeometry* g, double* counts) {
  const auto result = fastcnn::cpu::conv2d_counts(static_cast<fastcnn::cpu::Conv2dPass>(pass),
                                                  static_cast<fastcnn::Conv2dAlgorithm>(algorithm), *g);
  std::copy(result.begin(), result.end(), counts);
}
FASTCNN_API int fastcnn_conv2d_choice(int pass, const fastcnn::Conv2dGeometry* g) {
  return static_cast<int>(fastcnn::cpu::choose_conv2d(static_cast<fastcnn::cpu::Conv2dPass>(pass), *g, at::kFloat));
}

// Bytes of freed blocks that are kept for later tensors, and giving them back to the system.
FASTCNN_API int64_t fastcnn_cached_memory() { return fastcnn::cpu::cached_memory(); }
FASTCNN_API void fastcnn_empty_cache() { fastcnn::cpu::empty_memory_cache(); }

// float32 GFLOP/s of all threads together on registers alone, measured for some milliseconds.
FASTCNN_API double fastcnn_fma_gflops() { return fastcnn::cpu::fma_gflops(); }

FASTCNN_API void fastcnn_record_kernels(int on) { fastcnn::backends::set_recording(on != 0); }

// What ran since recording began, one name a line; valid until the calling thread asks again.
FASTCNN_API const char* fastcnn_recorded_kernels() {
  thread_local std::string text;
  text = fastcnn::backends::recorded_kernels();
  return text.c_str();
}
