// A linear layer of one image: the weights are read once, from memory for large layers, so several rows are read side
// by side, which is more streams for the prefetchers (30 GB/s against 21 with one row; two cores, Sapphire Rapids).
// Included once per instruction set.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

constexpr int kLinearRows = 8;
constexpr int64_t kLinearAhead = 2048;  // bytes of a row that are asked for ahead of their use
constexpr int64_t kShortRows = 16384;   // bytes: where a tile's rows take no more, the next tile's are asked for
constexpr int64_t kLinearChain = 256;   // registers that one chain of additions takes

template <typename T, int Rows>
void linear_rows(const LinearArgs<T>& a, int64_t row) {
  using V = Vec<T>;
  using Reg = typename V::Reg;
  constexpr int kWidth = V::kWidth;
  const T* weight = a.weight + row * a.length;
  constexpr auto kSize = static_cast<int64_t>(sizeof(T));
  const int64_t ahead = Rows * a.length * kSize <= kShortRows ? Rows * a.length : kLinearAhead / kSize;
  Reg sums[Rows];
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) sums[m] = V::zero();
  const int64_t whole = a.length / kWidth * kWidth;
  for (int64_t begin = 0; begin < whole; begin += kLinearChain * kWidth) {
    const int64_t end = begin + kLinearChain * kWidth < whole ? begin + kLinearChain * kWidth : whole;
    Reg acc[Rows];
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) acc[m] = V::zero();
    for (int64_t i = begin; i < end; i += kWidth) {
      const Reg x = V::load(a.input + i);
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        const T* w = weight + m * a.length + i;
        __builtin_prefetch(w + ahead);
        acc[m] = V::fmadd(V::load(w), x, acc[m]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) sums[m] = V::add(sums[m], acc[m]);
  }
  if (const int rest = static_cast<int>(a.length - whole); rest > 0) {
    const Reg x = V::load_first(a.input + whole, rest);
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) sums[m] = V::fmadd(V::load_first(weight + m * a.length + whole, rest), x, sums[m]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) {
    const T y = V::sum(sums[m]) + (a.bias != nullptr ? a.bias[row + m] : T(0));
    a.output[row + m] = y;
  }
}

template <typename T>
void linear(const LinearArgs<T>& a) {
  over_tiles<kLinearRows>(a.outputs, [&]<int Rows>(int64_t row) { linear_rows<T, Rows>(a, row); });
  activation<T>({a.output, a.outputs, 1, a.outputs, a.activation});
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
