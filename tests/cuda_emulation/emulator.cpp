// Runs a grid's threads as fibers of one OS thread: an own stack each, switched by a few lines of assembly, in a random
// order between barriers. Reports the barriers and warp collectives that not all threads reach.
#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// emulation_switch(save, load): stores the registers that a call preserves on this stack and its pointer in *save, and
// takes up the stack `load`, which was left in the same way. A new stack holds `entry` as the address to return to.
#if defined(__x86_64__)
asm(R"(
.text
.globl emulation_switch
.hidden emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");
constexpr int kSavedWords = 6, kEntryWord = 6, kFrameWords = 8;
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulation_switch
.hidden emulation_switch
.type emulation_switch, %function
emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulation_switch, .-emulation_switch
)");
constexpr int kEntryWord = 11, kFrameWords = 20;
#else
#error "the emulator has no stack switch for this processor"
#endif
extern "C" void emulation_switch(void** save, void* load);

namespace emulation {

Builtin builtin;
bool checking = false;
const Thread* running = nullptr;

namespace {

constexpr size_t kStackBytes = size_t{256} << 10, kGuardBytes = 4096;
constexpr int kMaxThreads = 1024;  // of a block

enum class State { ready, at_barrier, in_collective, returned };

struct Fiber {
  char* stack = nullptr;  // [kStackBytes], behind a page that nothing may touch
  void* pointer = nullptr;
  State state = State::returned;
  Site site;
  const char* waits_for = "";
  uint3 index;
  Thread thread;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
};

struct Warp {
  const char* what = nullptr;  // the collective that lanes have begun to reach
  Lanes lanes{};
  void (*complete)(const Lanes&) = nullptr;
  Site site;
  unsigned arrived = 0;
};

struct Record {
  Kernel kernel;
  dim3 grid, block;
};

Fiber fibers[kMaxThreads];
Warp warps[kMaxThreads / 32];
std::vector<int> ready;
std::vector<Record> records;
std::string failure;
const void* failure_place = nullptr;
void* scheduler = nullptr;  // its stack, while a fiber runs
int current = 0, thread_count = 0, votes = 0, last_votes = 0;
bool stopped = false;
uint32_t epoch = 0;
uint64_t random_state = 1;
const char* kernel_name = "";
void (*kernel_thread)(const void*) = nullptr;
const void* kernel_call = nullptr;
#if defined(__SANITIZE_ADDRESS__)
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
#endif

uint32_t random_below(uint32_t bound) {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return static_cast<uint32_t>((random_state * 0x2545F4914F6CDD1D >> 32) * bound >> 32);
}

void leave_fiber() {
  Fiber& fiber = fibers[current];
  checking = false;
#if defined(__SANITIZE_ADDRESS__)
  const bool ends = fiber.state == State::returned;
  __sanitizer_start_switch_fiber(ends ? nullptr : &fiber.fake_stack, scheduler_stack, scheduler_stack_bytes);
#endif
  emulation_switch(&fiber.pointer, scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
  checking = true;
}

void enter_fiber(int id) {
  current = id;
  Fiber& fiber = fibers[id];
  builtin.thread_index = fiber.index;
  running = &fiber.thread;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, kStackBytes);
#endif
  emulation_switch(&scheduler, fiber.pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void fiber_entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  checking = true;
  kernel_thread(kernel_call);
  fibers[current].state = State::returned;
  leave_fiber();
  abort();  // a thread that returned is not taken up again
}

void prepare_fiber(int id, dim3 block) {
  Fiber& fiber = fibers[id];
  if (!fiber.stack) {
    char* memory = static_cast<char*>(mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) abort();
    fiber.stack = memory + kGuardBytes;
  }
#if defined(__SANITIZE_ADDRESS__)
  if (fiber.state != State::returned) __asan_unpoison_memory_region(fiber.stack, kStackBytes);  // was left halfway
  fiber.fake_stack = nullptr;
#endif
  void** frame = reinterpret_cast<void**>(fiber.stack + kStackBytes) - kFrameWords;
  std::fill(frame, frame + kFrameWords, nullptr);
  frame[kEntryWord] = reinterpret_cast<void*>(fiber_entry);
  fiber.pointer = frame;
  fiber.state = State::ready;
  fiber.waits_for = "";
  const unsigned i = static_cast<unsigned>(id);
  fiber.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  fiber.thread = {epoch, epoch, i / 32, i % 32, fiber.stack, fiber.stack + kStackBytes};
}

// --- When no thread can go on ----------------------------------------------------------------------------------------
std::string describe(int id) {
  const Fiber& fiber = fibers[id];
  if (fiber.state == State::returned) return "has returned";
  const std::string file = fiber.site.file;
  return std::string("waits in ") + fiber.waits_for + " at " + file.substr(file.rfind('/') + 1) + ":" +
         std::to_string(fiber.site.line);
}

// "threads 0-31: has returned; threads 32-63: waits in __syncthreads at x.cuh:12"
std::string describe_all() {
  std::string text;
  for (int id = 0, first = 0; id < thread_count; ++id) {
    if (id + 1 < thread_count && describe(id + 1) == describe(first)) continue;
    text += (text.empty() ? "threads " : "; threads ") + std::to_string(first) + "-" + std::to_string(id) + ": " +
            describe(first);
    first = id + 1;
  }
  return text;
}

void set_failure(const void* place, const std::string& what) {
  if (!failure.empty()) return;
  const uint3 b = builtin.block_index, t = builtin.thread_index;
  char where[160];
  snprintf(where, sizeof(where), "%s, block (%u, %u, %u), thread (%u, %u, %u): ", kernel_name, b.x, b.y, b.z, t.x, t.y,
           t.z);
  failure = where + what;
  failure_place = place;
}

void release_barrier() {
  const Site* site = nullptr;
  for (int id = 0; id < thread_count; ++id) {
    const Fiber& fiber = fibers[id];
    if (fiber.state != State::at_barrier || (site && !(fiber.site == *site))) {
      set_failure(nullptr, "not all threads reach the same barrier: " + describe_all());
      stopped = true;
      return;
    }
    site = &fiber.site;
  }
  ++epoch;
  last_votes = votes;
  votes = 0;
  for (int id = 0; id < thread_count; ++id) {
    fibers[id].state = State::ready;
    fibers[id].thread.block_epoch = epoch;
    ready.push_back(id);
  }
}

void run_block(dim3 block) {
  begin_block(++epoch);
  votes = 0;
  std::fill(std::begin(warps), std::end(warps), Warp{});
  ready.clear();
  for (int id = 0; id < thread_count; ++id) {
    prepare_fiber(id, block);
    ready.push_back(id);
  }
  const auto alive = [](const Fiber& fiber) { return fiber.state != State::returned; };
  while (!stopped) {
    if (ready.empty()) {
      if (!std::any_of(fibers, fibers + thread_count, alive)) return;
      release_barrier();
      continue;
    }
    std::swap(ready[random_below(static_cast<uint32_t>(ready.size()))], ready.back());
    const int id = ready.back();
    ready.pop_back();
    enter_fiber(id);
  }
}

bool is_valid(dim3 grid, dim3 block) {
  const auto inside = [](unsigned n, unsigned max) { return n >= 1 && n <= max; };
  return inside(grid.x, 0x7fffffff) && inside(grid.y, 65535) && inside(grid.z, 65535) && inside(block.x, 1024) &&
         inside(block.y, 1024) && inside(block.z, 64) && block.x * block.y * block.z <= kMaxThreads;
}

}  // namespace

// --- What kernels call -----------------------------------------------------------------------------------------------
int lane() { return current % 32; }

int sync_threads(int predicate, const Site& site) {
  Fiber& fiber = fibers[current];
  fiber.state = State::at_barrier;
  fiber.site = site;
  fiber.waits_for = "__syncthreads";
  votes += predicate;
  leave_fiber();
  return last_votes;
}

void collective(const char* what, unsigned mask, void* request, void (*complete)(const Lanes&), const Site& site) {
  const int self = lane(), first = current - self;
  Warp& warp = warps[current / 32];
  Fiber& fiber = fibers[current];
  fiber.site = site;
  fiber.waits_for = what;
  if (!(mask >> self & 1)) fail("lane %d calls %s without being in its mask %08x", self, what, mask);
  if (warp.arrived == 0) {
    warp = Warp{what, {}, complete, site, 0};
    warp.lanes.mask = mask;
  }
  if (strcmp(what, warp.what) != 0 || mask != warp.lanes.mask || !(site == warp.site))
    fail("lanes meet in different collectives: %s with mask %08x at line %d, %s with mask %08x at line %d", warp.what,
         warp.lanes.mask, warp.site.line, what, mask, site.line);
  warp.lanes.requests[self] = request;
  warp.arrived |= 1u << self;
  if (warp.arrived != mask) {
    fiber.state = State::in_collective;
    leave_fiber();
    return;
  }
  checking = false;
  warp.complete(warp.lanes);
  warp.arrived = 0;
  for (int i = 0; i < 32; ++i) {
    if (i == self || !(mask >> i & 1)) continue;
    fibers[first + i].state = State::ready;
    ready.push_back(first + i);
  }
  checking = true;
}

void sync_warp(unsigned mask, const Site& site) {
  const auto complete = [](const Lanes& lanes) {
    if (~lanes.mask != 0) return;  // orders only some lanes: no epoch for all
    ++epoch;
    for (int i = 0; i < 32; ++i) fibers[current / 32 * 32 + i].thread.warp_epoch = epoch;
  };
  int unused;
  collective("__syncwarp", mask, &unused, complete, site);
}

void fail(const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  fail_at(nullptr, "%s", text);
}

void fail_at(const void* place, const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  const Fiber& fiber = fibers[current];
  const std::string where = place ? "" : std::string(" (") + describe(current) + ")";
  set_failure(place, text + (fiber.waits_for[0] ? where : ""));
  stopped = true;
  for (;;) leave_fiber();
}

void check_warp_access(const void* address, size_t bytes, Kind kind) {
  Thread thread = *running;
  thread.lane = kAnyLane;
  check(thread, address, bytes, kind, nullptr);
}

void check_atomic(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail("atomic at %p, not a multiple of %zu", address, bytes);
  check(*running, address, bytes, Kind::atomic, nullptr);
}

cudaError_t run_grid(const Kernel& kernel, dim3 grid, dim3 block, void (*thread)(const void*), const void* call,
                     size_t call_bytes, const Image& image) {
  if (!is_valid(grid, block)) {
    char text[200];
    snprintf(text, sizeof(text), "%s: no such launch: grid (%u, %u, %u), block (%u, %u, %u)", kernel.name, grid.x,
             grid.y, grid.z, block.x, block.y, block.z);
    if (failure.empty()) failure = text;
    return cudaErrorInvalidConfiguration;
  }
  records.push_back({kernel, grid, block});
  kernel_name = kernel.name;
  kernel_thread = thread;
  kernel_call = call;
  thread_count = static_cast<int>(block.x * block.y * block.z);
  stopped = !failure.empty();
  builtin = {{}, {}, block, grid};
  begin_grid(image, call, call_bytes);

  const uint64_t count = uint64_t{grid.x} * grid.y * grid.z;
  std::vector<uint64_t> order(count);
  for (uint64_t i = 0; i < count; ++i) order[i] = i;
  for (uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[random_below(static_cast<uint32_t>(i))]);
  for (const uint64_t i : order) {
    if (stopped) break;
    builtin.block_index = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                           static_cast<unsigned>(i / grid.x / grid.y)};
    run_block(block);
  }
  return cudaSuccess;
}

}  // namespace emulation

// --- For the tests, through ctypes -----------------------------------------------------------------------------------
extern "C" {

void emulation_reset(uint64_t seed) {
  using namespace emulation;
  random_state = seed * 2 + 1;
  failure.clear();
  failure_place = nullptr;
  records.clear();
}
const char* emulation_failure() { return emulation::failure.c_str(); }
const void* emulation_failure_place() { return emulation::failure_place; }
int emulation_launch_count() { return static_cast<int>(emulation::records.size()); }
const char* emulation_launch(int i, unsigned* geometry, const void** code, int* flag) {
  const auto& [kernel, grid, block] = emulation::records[static_cast<size_t>(i)];
  const unsigned all[] = {grid.x, grid.y, grid.z, block.x, block.y, block.z};
  std::copy(std::begin(all), std::end(all), geometry);
  *code = kernel.code, *flag = kernel.flag;
  return kernel.name;
}

}  // extern "C"
