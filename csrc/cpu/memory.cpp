// A caching allocator for large blocks, best fit first. What it keeps does not raise the peak, but for gaps: memory is
// given back before a new segment would take it above the most that was in use at once. Small blocks, and all of them
// where the switch is off, are torch's.
#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <pthread.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

#include "../common/backends.h"
#include "../common/geometry.h"

namespace fastcnn::cpu {
namespace {

constexpr size_t kCachedBytes = size_t{1} << 20;  // blocks from here on are kept: malloc keeps smaller ones itself
constexpr size_t kGranule = size_t{1} << 16;      // sizes are multiples of it, so that nearly equal ones are equal
constexpr size_t kHugePage = size_t{1} << 21;
// A segment that nobody used for this time is given back at the next call.
constexpr std::chrono::seconds kIdleTime{10};

// A huge page costs one page fault where 512 small ones would be.
void advise_huge_pages([[maybe_unused]] void* block, [[maybe_unused]] size_t bytes) {
#ifdef __linux__
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(block) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(block) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // NOLINT: a hint
#endif
}

// Segments come from the system and are cut into chunks; neighbouring free chunks become one again.
class Segments {
 public:
  // The smallest free chunk that is large enough, or a new segment.
  void* take(size_t size) {
    auto best = free_.lower_bound({size, nullptr});
    if (best == free_.end()) {
      make_room(size);
      best = add_segment(size);
    }
    char* begin = best->second;
    free_.erase(best);
    Chunk& chunk = chunks_.at(begin);
    if (chunk.size - size >= kCachedBytes) {
      chunks_.emplace(begin + size, Chunk{chunk.size - size, chunk.segment, chunk.since, true});
      free_.emplace(chunk.size - size, begin + size);
      chunk.size = size;
    }
    chunk.free = false;
    in_use_ += chunk.size;
    peak_ = std::max(peak_, in_use_);
    return begin;
  }

  void give_back(void* block) {
    auto chunk = chunks_.find(static_cast<char*>(block));
    in_use_ -= chunk->second.size;
    chunk->second.free = true, chunk->second.since = Clock::now();
    if (const auto next = std::next(chunk); joins(chunk, next)) {
      free_.erase({next->second.size, next->first});
      chunk->second.size += next->second.size;
      chunks_.erase(next);
    }
    if (chunk != chunks_.begin() && joins(std::prev(chunk), chunk)) {
      const auto previous = std::prev(chunk);
      free_.erase({previous->second.size, previous->first});
      previous->second.size += chunk->second.size, previous->second.since = chunk->second.since;
      chunks_.erase(chunk);
      chunk = previous;
    }
    free_.emplace(chunk->second.size, chunk->first);
  }

  // Returns segments that nobody has used for a while.
  void release_idle() {
    const Clock::time_point now = Clock::now();
    if (now < next_check_) return;
    next_check_ = now + kIdleTime / 4;
    release_if([&](const Chunk& chunk) { return now - chunk.since > kIdleTime; });
  }
  void release_all() {
    release_if([](const Chunk&) { return true; });
    peak_ = in_use_;
  }
  size_t cached() const { return reserved_ - in_use_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Chunk {
    size_t size;
    char* segment;            // where its segment begins
    Clock::time_point since;  // of its last use
    bool free;
  };
  using Chunks = std::map<char*, Chunk>;

  bool joins(Chunks::iterator first, Chunks::iterator second) const {
    return second != chunks_.end() && first->second.free && second->second.free &&
           first->second.segment == second->second.segment;
  }

  bool whole_segment(const Chunks::iterator chunk) const {
    return chunk->second.free && chunk->first == chunk->second.segment &&
           chunk->second.size == segments_.at(chunk->first);
  }

  std::set<std::pair<size_t, char*>>::iterator add_segment(size_t size) {
    char* begin = static_cast<char*>(c10::alloc_cpu(size));
    advise_huge_pages(begin, size);
    reserved_ += size;
    segments_.emplace(begin, size);
    chunks_.emplace(begin, Chunk{size, begin, Clock::now(), true});
    return free_.emplace(size, begin).first;
  }

  Chunks::iterator release(Chunks::iterator chunk) {
    reserved_ -= chunk->second.size;
    free_.erase({chunk->second.size, chunk->first});
    segments_.erase(chunk->first);
    c10::free_cpu(chunk->first);
    return chunks_.erase(chunk);
  }

  template <typename Condition>
  void release_if(const Condition& condition) {
    for (auto chunk = chunks_.begin(); chunk != chunks_.end();)
      chunk = whole_segment(chunk) && condition(chunk->second) ? release(chunk) : std::next(chunk);
  }

  // Returns the segments longest unused, so that a new one keeps everything within the peak.
  void make_room(size_t size) {
    const size_t limit = std::max(peak_, in_use_ + size);
    while (reserved_ + size > limit) {
      auto oldest = chunks_.end();
      for (auto chunk = chunks_.begin(); chunk != chunks_.end(); ++chunk)
        if (whole_segment(chunk) && (oldest == chunks_.end() || chunk->second.since < oldest->second.since))
          oldest = chunk;
      if (oldest == chunks_.end()) return;
      release(oldest);
    }
  }

  Chunks chunks_;                            // by address
  std::set<std::pair<size_t, char*>> free_;  // size and address
  std::unordered_map<char*, size_t> segments_;
  size_t in_use_ = 0, reserved_ = 0, peak_ = 0;
  Clock::time_point next_check_{};
};

class CachingAllocator final : public c10::Allocator {
 public:
  static CachingAllocator& instance() {
    // Never destroyed: tensors may outlive every static object.
    static CachingAllocator* allocator = new CachingAllocator;
    return *allocator;
  }

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kCachedBytes || !backends::current().memory_cache) return c10::GetCPUAllocator()->allocate(bytes);
    void* block = nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      segments_.release_idle();
      block = segments_.take((bytes + kGranule - 1) / kGranule * kGranule);
    }
    c10::profiledCPUMemoryReporter().New(block, bytes);
    return {block, block, &give_back, at::Device(at::kCPU)};
  }

  void copy_data(void* dest, const void* src, size_t count) const override { default_copy_data(dest, src, count); }

  size_t cached() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return segments_.cached();
  }
  void release_all() {
    const std::lock_guard<std::mutex> lock(mutex_);
    segments_.release_all();
  }

 private:
  CachingAllocator() {
    // A child of fork must not inherit the lock from a thread that it has not.
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
  }

  static void give_back(void* block) {
    c10::profiledCPUMemoryReporter().Delete(block);
    CachingAllocator& self = instance();
    const std::lock_guard<std::mutex> lock(self.mutex_);
    self.segments_.give_back(block);
  }

  std::mutex mutex_;
  Segments segments_;
};

}  // namespace

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, &CachingAllocator::instance(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   c10::typeMetaToScalarType(options.dtype()),
                                   format ? format : options.memory_format_opt());
}

at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options) { return empty(sizes, options).zero_(); }

int64_t cached_memory() { return static_cast<int64_t>(CachingAllocator::instance().cached()); }
void empty_memory_cache() { CachingAllocator::instance().release_all(); }

}  // namespace fastcnn::cpu
