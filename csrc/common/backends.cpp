#include "backends.h"

#include <atomic>
#include <mutex>

namespace fastcnn {

const char* algorithm_name(Conv2dAlgorithm algorithm) {
  constexpr const char* kNames[] = {
#define FASTCNN_NAME(name) #name,
      FASTCNN_CONV2D_ALGORITHMS(FASTCNN_NAME)
#undef FASTCNN_NAME
  };
  return kNames[static_cast<int>(algorithm)];
}

}  // namespace fastcnn

namespace fastcnn::backends {
namespace {

std::atomic<bool> recording{false};
std::mutex record_mutex;
std::string record;

}  // namespace

Switches& current() {
  thread_local Switches switches;
  return switches;
}

void record_kernel(const char* name) {
  if (!recording.load(std::memory_order_relaxed)) return;
  const std::lock_guard<std::mutex> lock(record_mutex);
  record.append(name).push_back('\n');
}

void set_recording(bool on) {
  const std::lock_guard<std::mutex> lock(record_mutex);
  if (on) record.clear();
  recording.store(on, std::memory_order_relaxed);
}

std::string recorded_kernels() {
  const std::lock_guard<std::mutex> lock(record_mutex);
  return record;
}

}  // namespace fastcnn::backends
