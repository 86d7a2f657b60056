// Memory for the values of running calls: one block a call, kept for later calls up to a number of them.
#pragma once
#include <ATen/core/Tensor.h>

#include <mutex>
#include <vector>

namespace fastcnn::plan {

class ArenaPool {
 public:
  // A block of at least that many floats, aligned to a cache line, given back when the lease ends.
  class Lease {
   public:
    Lease(ArenaPool& pool, int64_t floats) : pool_(pool), block_(pool.take(floats)) {}
    ~Lease() { pool_.give_back(std::move(block_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    float* data() const { return block_.mutable_data_ptr<float>(); }

   private:
    ArenaPool& pool_;
    at::Tensor block_;
  };

 private:
  struct Kept {
    at::Tensor block;
    int64_t unused = 0;  // calls since it was given back that took another block
  };

  at::Tensor take(int64_t floats);
  void give_back(at::Tensor block);

  std::mutex mutex_;
  std::vector<Kept> kept_;
};

}  // namespace fastcnn::plan
