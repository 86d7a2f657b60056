// Activations: the rectifiers of the epilogues, and the rest over rows of channels, in place. The compiler makes
// vectors of the loops: they hold no operation that Vec has not, but integers in the exponent's place. NaN stays NaN.
// Included once per instruction set.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// Splits x into n ln 2 + r with an integer n and |r| <= ln 2 / 2, sums exp(r)'s Taylor series, whose first term left
// out is less than an eighth of the last place, and adds n to the exponent.
template <typename T>
struct ExpOf;
template <>
struct ExpOf<float> {
  using Bits = uint32_t;
  static constexpr int kTerms = 8, kMantissa = 23, kBias = 127;
  static constexpr float kMost = 87, kRound = 0x1.8p23f, kLn2High = 0x1.62ep-1f, kLn2Low = 0x1.0bfbe8p-15f;
};
template <>
struct ExpOf<double> {
  using Bits = uint64_t;
  static constexpr int kTerms = 14, kMantissa = 52, kBias = 1023;
  static constexpr double kMost = 708, kRound = 0x1.8p52, kLn2High = 0x1.62e42fefap-1, kLn2Low = 0x1.cf79abc9e3b39p-40;
};

// 1 / n!
template <typename T>
constexpr T inverse_factorial(int n) {
  double product = 1;
  for (int i = 2; i <= n; ++i) product *= i;
  return static_cast<T>(1 / product);
}

template <typename T>
inline T sigmoid_of(T x) {
  using E = ExpOf<T>;
  // exp(-x) within the normal numbers; a NaN passes both comparisons and every step below.
  T y = -x;
  y = y > E::kMost ? E::kMost : y;
  y = y < -E::kMost ? -E::kMost : y;
  const T shifted = y * static_cast<T>(1.4426950408889634) + E::kRound;  // rounds to an integer in the lowest bits
  const T n = shifted - E::kRound, r = (y - n * E::kLn2High) - n * E::kLn2Low;
  T sum = inverse_factorial<T>(E::kTerms - 1);
#pragma GCC unroll 16
  for (int i = E::kTerms - 2; i >= 0; --i) sum = sum * r + inverse_factorial<T>(i);
  typename E::Bits bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + E::kBias) << E::kMantissa;
  T power;
  __builtin_memcpy(&power, &bits, sizeof(power));
  return 1 / (1 + sum * power);
}

// relu6(x + 3) / 6
template <typename T>
inline T hard_sigmoid_of(T x) {
  T y = x + 3;
  y = y < 0 ? 0 : y;
  y = y > 6 ? 6 : y;
  return y * (T(1) / 6);
}

template <typename T>
inline T silu_of(T x) {
  const T least = -ExpOf<T>::kMost;  // there it is nothing; sigmoid_of is not, which counts if x is large
  return (x < least ? least : x) * sigmoid_of(x);
}

template <typename T, typename Function>
void activate_rows(const ActivationArgs<T>& a, const Function& function) {
  for (int64_t row = 0; row < a.rows; ++row) {
    T* data = a.data + row * a.stride;
    for (int64_t c = 0; c < a.channels; ++c) data[c] = function(data[c]);
  }
}

template <typename T>
void activation(const ActivationArgs<T>& args) {
  const ActivationArgs<T> a = args;
  switch (a.activation) {
    case Activation::none:
      break;
    case Activation::relu:
      return activate_rows(a, [](T x) { return x < 0 ? T(0) : x; });
    case Activation::sigmoid:
      return activate_rows(a, [](T x) { return sigmoid_of(x); });
    case Activation::relu6:
      return activate_rows(a, [](T x) {
        x = x < 0 ? T(0) : x;
        return x > 6 ? T(6) : x;
      });
    case Activation::hard_sigmoid:
      return activate_rows(a, [](T x) { return hard_sigmoid_of(x); });
    case Activation::hard_swish:
      return activate_rows(a, [](T x) { return x * hard_sigmoid_of(x); });
    case Activation::silu:
      return activate_rows(a, [](T x) { return silu_of(x); });
  }
}

// An epilogue's: none, relu or relu6.
template <typename V>
inline typename V::Reg rectify(Activation activation, typename V::Reg y) {
  if (activation == Activation::none) return y;
  y = V::relu(y);
  if (activation == Activation::relu) return y;
  const typename V::Reg most = V::broadcast(6);
  return V::select(V::greater(y, most), most, y);
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
