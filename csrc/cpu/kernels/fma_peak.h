// The most multiplications and additions that a core does: chains enough to hide their latency, and no memory. What
// benchmarks give their percentages of. Included once per instruction set.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

template <typename T>
void fma_peak(const FmaPeakArgs<T>& a) {
  using V = Vec<T>;
  typename V::Reg acc[kFmaPeakChains];
  for (int i = 0; i < kFmaPeakChains; ++i) acc[i] = V::broadcast(T(i));
  const typename V::Reg x = V::broadcast(T(0.999)), y = V::broadcast(T(0.001));
  for (int64_t r = 0; r < a.rounds; ++r)
#pragma GCC unroll 10
    for (int i = 0; i < kFmaPeakChains; ++i) acc[i] = V::fmadd(acc[i], x, y);
  for (int i = 1; i < kFmaPeakChains; ++i) acc[0] = V::add(acc[0], acc[i]);
  V::store_first(a.result, acc[0], 1);
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
