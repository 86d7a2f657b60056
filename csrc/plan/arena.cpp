#include "arena.h"

#include "../cpu/memory.h"

namespace fastcnn::plan {
namespace {

constexpr size_t kMostKept = 4;  // blocks: more calls at a time allocate
// A block that many times as large as what is asked for is not used: a large batch now and then would stay for ever.
constexpr int64_t kMostSpare = 4;

}  // namespace

at::Tensor ArenaPool::take(int64_t floats) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = kept_.end();
    for (auto block = kept_.begin(); block != kept_.end(); ++block)
      if (block->numel() >= floats && block->numel() / kMostSpare <= floats &&
          (best == kept_.end() || block->numel() < best->numel()))
        best = block;
    if (best != kept_.end()) {
      at::Tensor block = std::move(*best);
      kept_.erase(best);
      return block;
    }
  }
  return cpu::empty({floats}, at::device(at::kCPU).dtype(at::kFloat));
}

void ArenaPool::give_back(at::Tensor block) {
  const std::lock_guard<std::mutex> lock(mutex_);
  kept_.push_back(std::move(block));
  if (kept_.size() > kMostKept) kept_.erase(kept_.begin());  // the one that was not used for longest
}

}  // namespace fastcnn::plan
