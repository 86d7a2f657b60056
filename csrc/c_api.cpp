// The doors that are no ops: build and CPU facts, switches, the kernel record. Plain C functions, called through
// ctypes, so that the library needs no Python headers and one build serves every Python version.
#include <string>

#include "common/backends.h"
#include "cpu/capability.h"

#define FASTCNN_API extern "C" __attribute__((visibility("default")))

FASTCNN_API const char* fastcnn_cpu_capability() { return fastcnn::cpu::kernels().isa; }

FASTCNN_API const char* fastcnn_cpu_capability_detected() { return fastcnn::cpu::detected_capability(); }

// The names of the kernels in the table, one a line.
FASTCNN_API const char* fastcnn_kernels() {
#define FASTCNN_NAME(name, Args) #name "\n"
  return FASTCNN_KERNELS(FASTCNN_NAME);
#undef FASTCNN_NAME
}

FASTCNN_API int fastcnn_get_fallback() { return fastcnn::backends::current().fallback; }

// Sets the calling thread's switch and returns its previous value.
FASTCNN_API int fastcnn_set_fallback(int on) {
  const int previous = fastcnn::backends::current().fallback;
  fastcnn::backends::current().fallback = on != 0;
  return previous;
}

FASTCNN_API void fastcnn_record_kernels(int on) { fastcnn::backends::set_recording(on != 0); }

// What ran since recording began, one name a line; valid until the calling thread asks again.
FASTCNN_API const char* fastcnn_recorded_kernels() {
  thread_local std::string text;
  text = fastcnn::backends::recorded_kernels();
  return text.c_str();
}
