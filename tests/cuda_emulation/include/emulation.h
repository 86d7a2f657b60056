// How a grid runs on the host: the threads of a block are fibers, which take turns at barriers and warp collectives, in
// a random order; blocks run one after another. emulator.cpp implements it, checker.cpp watches the memory accesses.
#pragma once
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "vector_types.h"

namespace emulation {

// Where in the source a barrier or collective stands: a default argument, so that it is the caller's place.
struct Site {
  const char* file;
  int line;
  Site(const char* file_ = __builtin_FILE(), int line_ = __builtin_LINE()) : file(file_), line(line_) {}
  bool operator==(const Site&) const = default;
};

struct Builtin {
  uint3 thread_index, block_index;
  dim3 block_size, grid_size;
};
extern Builtin builtin;  // of the running thread

// --- Launches
// ---------------------------------------------------------------------------------------------------------- Where a
// library keeps what its code may touch: constants before `statics`, the shared memory of its kernels from there.
struct Image {
  const char *begin, *statics, *end;
};

// A kernel as it is launched: its name, its code, and its last argument where that is a bool, else -1.
struct Kernel {
  const char* name;
  const void* code;
  int flag;
};

cudaError_t run_grid(const Kernel& kernel, dim3 grid, dim3 block, void (*thread)(const void* call), const void* call,
                     size_t call_bytes, const Image& image);

template <typename... Args>
int last_flag([[maybe_unused]] const std::tuple<Args...>& args) {
  constexpr size_t kLast = sizeof...(Args) - 1;
  if constexpr (std::is_same_v<std::tuple_element_t<kLast, std::tuple<Args...>>, bool>) return std::get<kLast>(args);
  return -1;
}

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start[], __bss_start[], _end[];

template <typename... Params, typename... Args>
cudaError_t run(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, const Args&... args) {
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> args;
  } call{kernel, {args...}};
  const auto thread = [](const void* c) {
    const Call& call = *static_cast<const Call*>(c);
    std::apply(call.kernel, call.args);
  };
  const Kernel launched{name, reinterpret_cast<const void*>(kernel), last_flag(call.args)};
  return run_grid(launched, grid, block, thread, &call, sizeof(call), {__ehdr_start, __bss_start, _end});
}

// --- Barriers and warp collectives ----------------------------------------------------------------------------------
int sync_threads(int predicate, const Site& site);  // returns for how many threads it was 1
void sync_warp(unsigned mask, const Site& site);
int lane();

// What the lanes of a mask brought to a collective; nullptr for the others.
struct Lanes {
  void* requests[32];
  unsigned mask;
  template <typename Request>
  Request& at(int lane) const {
    return *static_cast<Request*>(requests[lane]);
  }
};
// Waits for all lanes of the mask; the last one runs `complete`, whose own memory accesses are not checked.
void collective(const char* what, unsigned mask, void* request, void (*complete)(const Lanes&), const Site& site);

// Stops the grid and reports `message`, which a test then raises.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

enum class Kind : uint8_t { read, write, atomic };
// Checks an access by some lane of the running thread's warp, and one by the thread itself.
void check_warp_access(const void* address, size_t bytes, Kind kind);
void check_atomic(const void* address, size_t bytes);

template <typename T>
T shuffle(const char* what, unsigned mask, T value, int from, const Site& site) {
  struct Request {
    T value;
    int from;
    T result;
  } request{value, from, value};
  collective(
      what, mask, &request,
      [](const Lanes& lanes) {
        for (int i = 0; i < 32; ++i) {
          if (!lanes.requests[i]) continue;
          Request& request = lanes.at<Request>(i);
          if (request.from < 0 || request.from >= 32 || !lanes.requests[request.from])
            fail("lane %d shuffles from lane %d, which is not in the mask %08x", i, request.from, lanes.mask);
          request.result = lanes.at<Request>(request.from).value;
        }
      },
      site);
  return request.result;
}

inline unsigned ballot(const char* what, unsigned mask, bool predicate, const Site& site) {
  struct Request {
    bool predicate;
    unsigned result;
  } request{predicate, 0};
  collective(
      what, mask, &request,
      [](const Lanes& lanes) {
        unsigned votes = 0;
        for (int i = 0; i < 32; ++i)
          if (lanes.requests[i] && lanes.at<Request>(i).predicate) votes |= 1u << i;
        for (int i = 0; i < 32; ++i)
          if (lanes.requests[i]) lanes.at<Request>(i).result = votes;
      },
      site);
  return request.result;
}

template <typename T, typename Change>
__attribute__((no_sanitize("thread"))) T atomic(T* address, const Change& change) {
  static_assert(T(0.5) == T(0), "floating-point atomics give another sum in every run");
  check_atomic(address, sizeof(T));
  const T old = *address;
  *address = change(old);
  return old;
}

}  // namespace emulation
