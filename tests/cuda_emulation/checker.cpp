// Watches every memory access of kernel code, which g++ -fsanitize=thread announces by calls of __tsan_*; the functions
// here take the place of its own runtime. Global memory must lie in a buffer that emulation_allocate gave; shared
// memory must have been written in this block before it is read, and two threads may touch one byte between two
// barriers only to read it.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "emulator.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSeesEverything = false;  // only wmma's accesses: AddressSanitizer watches the others
#else
constexpr bool kSeesEverything = true;
#endif

// --- Global memory ---------------------------------------------------------------------------------------------------
constexpr size_t kGuardBytes = 256;  // on either side of a buffer

struct Buffer {
  const char *begin, *end;
  bool writable;
  const char* name;
  char* memory;
};
std::vector<Buffer> buffers;
size_t last_buffer = 0;

const Buffer* find_buffer(const char* begin, const char* end) {
  const auto holds = [&](const Buffer& buffer) { return buffer.begin <= begin && end <= buffer.end; };
  if (last_buffer < buffers.size() && holds(buffers[last_buffer])) return &buffers[last_buffer];
  for (last_buffer = 0; last_buffer < buffers.size(); ++last_buffer)
    if (holds(buffers[last_buffer])) return &buffers[last_buffer];
  return nullptr;
}

// --- Shared memory ---------------------------------------------------------------------------------------------------
// Who last read or wrote a byte.
struct Access {
  uint32_t block_epoch, warp_epoch;
  uint16_t warp;
  uint8_t lane;
  Kind kind;

  // Whether nothing stands between it and what `thread` does now.
  bool unordered(const Thread& thread, Kind now) const {
    if (block_epoch != thread.block_epoch || (kind == Kind::atomic && now == Kind::atomic)) return false;
    if (warp != thread.warp) return true;
    return warp_epoch == thread.warp_epoch && (lane != thread.lane || lane == kAnyLane);
  }
};
constexpr uint16_t kManyWarps = 0xffff;
struct Byte {
  Access write, read;
};

struct Shadow {
  const char* begin = nullptr;  // of the library's statics
  const char* end = nullptr;
  Byte* bytes = nullptr;
};
std::vector<Shadow> shadows;  // one for each library: its bytes outlive a grid, as epochs never repeat
Shadow shadow;                // of the running grid
Image image;
const char *call_begin = nullptr, *call_end = nullptr;
uint32_t block_begin = 0;

Access access_by(const Thread& thread, Kind kind) {
  const auto lane = static_cast<uint8_t>(thread.lane);
  return {thread.block_epoch, thread.warp_epoch, static_cast<uint16_t>(thread.warp), lane, kind};
}

const char* name_of(Kind kind) { return kind == Kind::read ? "read" : kind == Kind::write ? "write" : "atomic"; }

void add_reader(Access& read, const Thread& thread) {
  if (read.block_epoch != thread.block_epoch) {
    read = access_by(thread, Kind::read);
  } else if (read.warp != thread.warp) {
    read.warp = kManyWarps;
  } else if (read.warp_epoch != thread.warp_epoch) {
    read = access_by(thread, Kind::read);
  } else if (read.lane != thread.lane) {
    read.lane = kAnyLane;
  }
}

[[noreturn]] void report_race(const Access& other, Kind kind, const char* address, const void* place) {
  char who[64];
  if (other.warp == kManyWarps) {
    snprintf(who, sizeof(who), "several warps");
  } else if (other.lane == kAnyLane) {
    snprintf(who, sizeof(who), "warp %u", other.warp);
  } else {
    snprintf(who, sizeof(who), "thread %u", other.warp * 32u + other.lane);
  }
  fail_at(place, "race: %s of shared memory (byte %zu) after a %s by %s since the last barrier", name_of(kind),
          static_cast<size_t>(address - shadow.begin), name_of(other.kind), who);
}

void check_shared(const Thread& thread, const char* address, size_t bytes, Kind kind, const void* place) {
  Byte* cell = shadow.bytes + (address - shadow.begin);
  for (size_t i = 0; i < bytes; ++i, ++cell) {
    if (cell->write.unordered(thread, kind)) report_race(cell->write, kind, address + i, place);
    if (kind != Kind::read && cell->read.unordered(thread, kind)) report_race(cell->read, kind, address + i, place);
    if (kind != Kind::write && cell->write.block_epoch < block_begin)
      fail_at(place, "read of shared memory (byte %zu) that nobody wrote in this block",
              static_cast<size_t>(address + i - shadow.begin));
    if (kind == Kind::read) {
      add_reader(cell->read, thread);
    } else {
      cell->write = access_by(thread, kind);
    }
  }
}

bool inside(const char* begin, const char* end, const void* from, const void* to) {
  return static_cast<const char*>(from) <= begin && end <= static_cast<const char*>(to);
}

[[noreturn]] void report_outside(const char* address, size_t bytes, Kind kind, const void* place) {
  const Buffer* nearest = nullptr;
  const auto distance = [&](const Buffer& b) { return address < b.begin ? b.begin - address : address - b.end; };
  for (const Buffer& buffer : buffers)
    if (!nearest || distance(buffer) < distance(*nearest)) nearest = &buffer;
  if (!nearest) fail_at(place, "out of bounds: %s of %zu bytes at %p", name_of(kind), bytes, address);
  fail_at(place, "out of bounds: %s of %zu bytes at byte %td of %s, which has %td", name_of(kind), bytes,
          address - nearest->begin, nearest->name, nearest->end - nearest->begin);
}

}  // namespace

void begin_grid(const Image& grid_image, const void* call, size_t call_bytes) {
  image = grid_image;
  call_begin = static_cast<const char*>(call);
  call_end = call_begin + call_bytes;
  for (const Shadow& known : shadows) {
    shadow = known;
    if (shadow.begin == image.statics) return;
  }
  shadow.begin = image.statics;
  shadow.end = image.end;
  const size_t bytes = static_cast<size_t>(shadow.end - shadow.begin) * sizeof(Byte);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  shadow.bytes = static_cast<Byte*>(memory);
  shadows.push_back(shadow);
}

void begin_block(uint32_t epoch) { block_begin = epoch; }

void check(const Thread& thread, const void* pointer, size_t bytes, Kind kind, const void* place) {
  const char* begin = static_cast<const char*>(pointer);
  const char* end = begin + bytes;
  if (inside(begin, end, thread.stack, thread.stack_end)) return;
  if (inside(begin, end, shadow.begin, shadow.end)) {
    if (kSeesEverything) check_shared(thread, begin, bytes, kind, place);
    return;
  }
  if (kind == Kind::read && (inside(begin, end, &builtin, &builtin + 1) || inside(begin, end, call_begin, call_end) ||
                             inside(begin, end, image.begin, image.statics)))
    return;
  const Buffer* buffer = find_buffer(begin, end);
  if (!buffer) report_outside(begin, bytes, kind, place);
  if (kind != Kind::read && !buffer->writable) fail_at(place, "write to %s, which is an input", buffer->name);
}

}  // namespace emulation

// --- What g++ -fsanitize=thread calls
// ---------------------------------------------------------------------------------
namespace {
using emulation::Kind;
inline void access(const void* address, size_t bytes, Kind kind, const void* place) {
  if (emulation::checking) emulation::check(*emulation::running, address, bytes, kind, place);
}
// A vector access must be aligned on a GPU.
inline void aligned_access(const void* address, size_t bytes, Kind kind, const void* place) {
  if (emulation::checking && reinterpret_cast<uintptr_t>(address) % bytes != 0)
    emulation::fail_at(place, "misaligned: access of %zu bytes at %p", bytes, address);
  access(address, bytes, kind, place);
}
}  // namespace

#define FASTCNN_ACCESS(BYTES)                                                                               \
  void __tsan_read##BYTES(void* p) { aligned_access(p, BYTES, Kind::read, __builtin_return_address(0)); }   \
  void __tsan_write##BYTES(void* p) { aligned_access(p, BYTES, Kind::write, __builtin_return_address(0)); } \
  void __tsan_unaligned_read##BYTES(void* p) { access(p, BYTES, Kind::read, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##BYTES(void* p) { access(p, BYTES, Kind::write, __builtin_return_address(0)); }

extern "C" {

FASTCNN_ACCESS(1)
FASTCNN_ACCESS(2)
FASTCNN_ACCESS(4)
FASTCNN_ACCESS(8)
FASTCNN_ACCESS(16)
void __tsan_read_range(void* p, size_t bytes) { access(p, bytes, Kind::read, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t bytes) { access(p, bytes, Kind::write, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// Kernel code reaches these through the linker's --wrap.
void* __wrap_memcpy(void* to, const void* from, size_t bytes) {
  access(from, bytes, Kind::read, __builtin_return_address(0));
  access(to, bytes, Kind::write, __builtin_return_address(0));
  return memcpy(to, from, bytes);
}
void* __wrap_memmove(void* to, const void* from, size_t bytes) {
  access(from, bytes, Kind::read, __builtin_return_address(0));
  access(to, bytes, Kind::write, __builtin_return_address(0));
  return memmove(to, from, bytes);
}
void* __wrap_memset(void* to, int value, size_t bytes) {
  access(to, bytes, Kind::write, __builtin_return_address(0));
  return memset(to, value, bytes);
}

// --- For the tests, through ctypes -----------------------------------------------------------------------------------
// `offset` bytes behind a multiple of 64; nothing around the buffer may be touched.
void* emulation_allocate(size_t bytes, size_t offset, int writable, const char* name) {
  using emulation::kGuardBytes;
  const size_t all = (kGuardBytes + offset + bytes + kGuardBytes + 63) / 64 * 64;
  char* memory = static_cast<char*>(aligned_alloc(64, all));
  if (!memory) abort();
  memset(memory, 0xff, all);  // NaN in every floating-point type
  char* begin = memory + kGuardBytes + offset;
  emulation::buffers.push_back({begin, begin + bytes, writable != 0, strdup(name), memory});
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(memory, all);
  __asan_unpoison_memory_region(begin, bytes);
#endif
  return begin;
}

void emulation_free(void* begin) {
  auto& buffers = emulation::buffers;
  for (size_t i = 0; i < buffers.size(); ++i) {
    if (buffers[i].begin != begin) continue;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(buffers[i].memory, buffers[i].end - buffers[i].memory + emulation::kGuardBytes);
#endif
    free(const_cast<char*>(buffers[i].name));
    free(buffers[i].memory);
    buffers.erase(buffers.begin() + static_cast<ptrdiff_t>(i));
    return;
  }
}

}  // extern "C"
