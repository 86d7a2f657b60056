#include "conv2d_autotune.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <fcntl.h>
#include <torch/headeronly/version.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <mutex>
#include <sstream>
#include <string>

#include "capability.h"

namespace fastcnn::cpu {
namespace {

constexpr int kRounds = 3;  // after one that warms up
constexpr const char* kFormat = "fastcnn-autotune-1";

std::mutex mutex;
// Key -> algorithm, of everything measured in this process or read from the file.
std::map<std::string, Conv2dAlgorithm>& known() {
  static std::map<std::string, Conv2dAlgorithm> choices;
  return choices;
}

// The CPU's name without blanks, as the file is meant to be carried along with a home folder.
std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0) {
      std::string name = line.substr(line.find(':') + 1);
      name.erase(std::remove_if(name.begin(), name.end(), [](unsigned char c) { return std::isspace(c); }), name.end());
      return name;
    }
  return "unknown";
}

std::string key_of(Conv2dPass pass, const Conv2dGeometry& g, at::ScalarType dtype,
                   const std::vector<Conv2dAlgorithm>& candidates) {
  static const std::string machine = cpu_name() + "," + TORCH_VERSION;
  std::ostringstream key;
  key << machine << ',' << kernels().isa << ",t" << at::get_num_threads() << ",p" << static_cast<int>(pass) << ','
      << c10::toString(dtype);
  for (const int64_t v : {g.batch, g.in_channels, g.in_h, g.in_w, g.out_channels, g.kernel_h, g.kernel_w, g.stride_h,
                          g.stride_w, g.pad_h, g.pad_w, g.dilation_h, g.dilation_w, g.groups})
    key << ',' << v;
  for (const Conv2dAlgorithm a : candidates) key << ',' << algorithm_name(a);
  return key.str();
}

const char* cache_path() { return std::getenv("FASTCNN_AUTOTUNE_CACHE"); }

// Lines of format, key and algorithm; whatever is not one of those is passed over.
void read_cache() {
  std::ifstream file(cache_path());
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string format, key, name, rest;
    if (!(fields >> format >> key >> name) || (fields >> rest) || format != kFormat) continue;
#define FASTCNN_MATCH(algorithm) \
  if (name == #algorithm && name != "automatic") known()[key] = Conv2dAlgorithm::algorithm;
    FASTCNN_CONV2D_ALGORITHMS(FASTCNN_MATCH)
#undef FASTCNN_MATCH
  }
}

// One line in one write to the file's end: writers side by side do not mix, and a line cut short by a crash is passed
// over, as the next one begins with a line break. A file that cannot be written costs the measurement of the next run.
void append_to_cache(const std::string& key, Conv2dAlgorithm algorithm) {
  const int file = ::open(cache_path(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0) return;
  const std::string line = "\n" + std::string(kFormat) + " " + key + " " + algorithm_name(algorithm) + "\n";
  [[maybe_unused]] const ssize_t written = ::write(file, line.data(), line.size());
  ::close(file);
}

Conv2dAlgorithm measure(const std::vector<Conv2dAlgorithm>& candidates,
                        const std::function<void(Conv2dAlgorithm)>& run) {
  std::vector<double> least(candidates.size(), std::numeric_limits<double>::max());
  for (const Conv2dAlgorithm algorithm : candidates) run(algorithm);
  for (int round = 0; round < kRounds; ++round)
    for (size_t i = 0; i < candidates.size(); ++i) {
      const auto started = std::chrono::steady_clock::now();
      run(candidates[i]);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
      least[i] = std::min(least[i], seconds.count());
    }
  return candidates[std::min_element(least.begin(), least.end()) - least.begin()];
}

}  // namespace

bool conv2d_autotunes(const Conv2dGeometry& g, at::ScalarType dtype) {
  const backends::Switches& switches = backends::current();
  return switches.autotune && dtype != at::kDouble && !g.depthwise() && g.batch > 0 && !switches.batch_invariant &&
         switches.conv2d_algorithm == Conv2dAlgorithm::automatic && !at::globalContext().deterministicAlgorithms();
}

Conv2dAlgorithm conv2d_autotuned(Conv2dPass pass, const Conv2dGeometry& g, at::ScalarType dtype,
                                 const std::function<void(Conv2dAlgorithm)>& run) {
  const std::vector<Conv2dAlgorithm> candidates = conv2d_candidates(pass, g, dtype);
  const std::string key = key_of(pass, g, dtype, candidates);
  {
    const std::lock_guard<std::mutex> lock(mutex);
    static const bool read = [] {
      if (cache_path() != nullptr) read_cache();
      return true;
    }();
    (void)read;
    const auto found = known().find(key);
    if (found != known().end() && std::find(candidates.begin(), candidates.end(), found->second) != candidates.end())
      return found->second;
  }
  const Conv2dAlgorithm best = measure(candidates, run);
  const std::lock_guard<std::mutex> lock(mutex);
  // The first of threads that measured the same shape side by side decides, so that all of them go on alike.
  const auto [place, inserted] = known().insert({key, best});
  if (inserted && cache_path() != nullptr) append_to_cache(key, best);
  return place->second;
}

}  // namespace fastcnn::cpu
