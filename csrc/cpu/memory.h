// The memory of what the CPU ops make: results and scratch. Large blocks are kept when they are freed, as torch.cuda
// does it, because a fresh one costs a page fault every 4 KB, which can take longer than the kernel that fills it.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace fastcnn::cpu {

// at::empty and at::zeros on kept memory.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options,
                 std::optional<at::MemoryFormat> format = std::nullopt);
at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options);

// Bytes that are kept and not in use, and giving them back to the system.
int64_t cached_memory();
void empty_memory_cache();

}  // namespace fastcnn::cpu
