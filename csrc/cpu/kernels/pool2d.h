// Pooling: what max and average share, then the kernels. Included once per instruction set.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// Runs work(c, lanes, Block) over the channels: whole blocks of four registers, single registers, and what is left.
template <int Vectors, bool Partial>
struct ChannelBlock {
  static constexpr int kVectors = Vectors;
  template <typename T>
  static typename Vec<T>::Reg load(const T* p, int v, int lanes) {
    if constexpr (Partial) return Vec<T>::load_first(p, lanes);
    return Vec<T>::load(p + v * Vec<T>::kWidth);
  }
  template <typename T>
  static void store(T* p, typename Vec<T>::Reg a, int v, int lanes) {
    if constexpr (Partial) {
      Vec<T>::store_first(p, a, lanes);
    } else {
      Vec<T>::store(p + v * Vec<T>::kWidth, a);
    }
  }
};

template <typename T, typename Work>
inline __attribute__((always_inline)) void over_channels(int64_t channels, const Work& work) {
  constexpr int kWidth = Vec<T>::kWidth;
  int64_t c = 0;
  for (; c + 4 * kWidth <= channels; c += 4 * kWidth) work(c, kWidth, ChannelBlock<4, false>{});
  for (; c + kWidth <= channels; c += kWidth) work(c, kWidth, ChannelBlock<1, false>{});
  if (c < channels) work(c, static_cast<int>(channels - c), ChannelBlock<1, true>{});
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA

#include "max_pool2d.h"
#include "avg_pool2d.h"
