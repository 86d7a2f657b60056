#include "arena.h"

#include "../cpu/memory.h"

namespace fastcnn::plan {
namespace {

constexpr size_t kMostKept = 4;  // blocks: more calls at a time allocate
// A block that many times as large as what is asked for is not used, and one that so many calls did not use is freed:
// a large batch now and then would stay for ever.
constexpr int64_t kMostSpare = 4, kMostUnused = 32;

}  // namespace

at::Tensor ArenaPool::take(int64_t floats) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::erase_if(kept_, [](Kept& kept) { return ++kept.unused > kMostUnused; });
    auto best = kept_.end();
    for (auto kept = kept_.begin(); kept != kept_.end(); ++kept) {
      const int64_t size = kept->block.numel();
      if (size >= floats && size / kMostSpare <= floats && (best == kept_.end() || size < best->block.numel()))
        best = kept;
    }
    if (best != kept_.end()) {
      at::Tensor block = std::move(best->block);
      kept_.erase(best);
      return block;
    }
  }
  return cpu::empty({floats}, at::device(at::kCPU).dtype(at::kFloat));
}

void ArenaPool::give_back(at::Tensor block) {
  const std::lock_guard<std::mutex> lock(mutex_);
  kept_.push_back({std::move(block)});
  if (kept_.size() > kMostKept) kept_.erase(kept_.begin());  // the one that was not used for longest
}

}  // namespace fastcnn::plan
