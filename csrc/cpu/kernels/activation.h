// Activations: the rectifiers of the epilogues, and the rest over rows of channels, in place. NaN stays NaN. Included
// once per instruction set.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// exp(x) is 2^n exp(r) with an integer n and |r| <= ln 2 / 2. exp(r) is its Taylor series, whose first term left out is
// less than an eighth of the last place.
template <typename T>
struct ExpOf;
template <>
struct ExpOf<float> {
  static constexpr int kTerms = 8;
  static constexpr float kMost = 87, kRound = 0x1.8p23f, kLn2High = 0x1.62ep-1f, kLn2Low = 0x1.0bfbe8p-15f;
};
template <>
struct ExpOf<double> {
  static constexpr int kTerms = 14;
  static constexpr double kMost = 708, kRound = 0x1.8p52, kLn2High = 0x1.62e42fefap-1, kLn2Low = 0x1.cf79abc9e3b39p-40;
};

// 1 / n!
template <typename T>
constexpr T inverse_factorial(int n) {
  double product = 1;
  for (int i = 2; i <= n; ++i) product *= i;
  return static_cast<T>(1 / product);
}

// 1 / (1 + exp(-x))
template <typename T>
inline typename Vec<T>::Reg sigmoid_of(typename Vec<T>::Reg x) {
  using V = Vec<T>;
  using E = ExpOf<T>;
  x = V::clamp(x, -E::kMost, E::kMost);  // exp(-x) is a normal number
  const typename V::Reg round = V::broadcast(E::kRound);
  const typename V::Reg shifted = V::fmadd(x, V::broadcast(static_cast<T>(-1.4426950408889634)), round);
  const typename V::Reg n = V::sub(shifted, round);
  const typename V::Reg minus_r = V::fmadd(n, V::broadcast(E::kLn2Low), V::fmadd(n, V::broadcast(E::kLn2High), x));
  typename V::Reg sum = V::broadcast((E::kTerms % 2 == 0 ? -1 : 1) * inverse_factorial<T>(E::kTerms - 1));
#pragma GCC unroll 16
  for (int i = E::kTerms - 2; i >= 0; --i)
    sum = V::fmadd(sum, minus_r, V::broadcast((i % 2 == 0 ? 1 : -1) * inverse_factorial<T>(i)));
  return V::inverse(V::fmadd(sum, V::power_of_2(shifted), V::broadcast(1)));
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
inline typename Vec<T>::Reg silu_of(typename Vec<T>::Reg x) {
  using V = Vec<T>;
  const typename V::Reg least = V::broadcast(-ExpOf<T>::kMost);  // there it is nothing; sigmoid_of is not, which counts
  return V::mul(V::select(V::greater(least, x), least, x), sigmoid_of<T>(x));  // if x is large
}

// The compiler makes vectors of the loop: `function` holds no operation that Vec has not.
template <typename T, typename Function>
void activate_rows(const ActivationArgs<T>& a, const Function& function) {
  for (int64_t row = 0; row < a.rows; ++row) {
    T* data = a.data + row * a.stride;
    for (int64_t c = 0; c < a.channels; ++c) data[c] = function(data[c]);
  }
}

// With a function of registers.
template <typename T, typename Function>
void activate_registers(const ActivationArgs<T>& a, const Function& function) {
  using V = Vec<T>;
  for (int64_t row = 0; row < a.rows; ++row) {
    T* data = a.data + row * a.stride;
    int64_t c = 0;
    for (; c + V::kWidth <= a.channels; c += V::kWidth) V::store(data + c, function(V::load(data + c)));
    if (const int rest = static_cast<int>(a.channels - c); rest > 0)
      V::store_first(data + c, function(V::load_first(data + c, rest)), rest);
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
      return activate_registers(a, sigmoid_of<T>);
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
      return activate_registers(a, silu_of<T>);
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
