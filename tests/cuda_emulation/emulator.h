// What emulator.cpp and checker.cpp know of each other.
#pragma once
#include <cstddef>
#include <cstdint>

#include "emulation.h"

namespace emulation {

// --- checker.cpp: every access of kernel code comes by ---------------------------------------------------------------
// Who is running; epochs are numbers that never repeat.
struct Thread {
  uint32_t block_epoch;  // since the block's last barrier
  uint32_t warp_epoch;   // since the warp's last __syncwarp
  uint32_t warp, lane;   // lane kAnyLane: an access by the whole warp
  const char* stack;     // and its end: what the thread may touch of its own
  const char* stack_end;
};
constexpr uint32_t kAnyLane = 32;

void begin_grid(const Image& image, const void* call, size_t call_bytes);
void begin_block(uint32_t epoch);
void check(const Thread& thread, const void* address, size_t bytes, Kind kind, const void* place);

// --- emulator.cpp
// -----------------------------------------------------------------------------------------------------
extern bool checking;          // kernel code runs, and its accesses count
extern const Thread* running;  // the thread that does
[[noreturn]] void fail_at(const void* place, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace emulation
