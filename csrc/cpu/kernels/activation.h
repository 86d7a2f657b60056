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
  using C = Compute<T>;
  using E = ExpOf<C>;
  x = V::clamp(x, V::broadcast(-E::kMost), V::broadcast(E::kMost));  // exp(-x) is a normal number
  const typename V::Reg round = V::broadcast(E::kRound);
  const typename V::Reg shifted = V::fmadd(x, V::broadcast(static_cast<C>(-1.4426950408889634)), round);
  const typename V::Reg n = V::sub(shifted, round);
  const typename V::Reg minus_r = V::fmadd(n, V::broadcast(E::kLn2Low), V::fmadd(n, V::broadcast(E::kLn2High), x));
  typename V::Reg sum = V::broadcast((E::kTerms % 2 == 0 ? -1 : 1) * inverse_factorial<C>(E::kTerms - 1));
#pragma GCC unroll 16
  for (int i = E::kTerms - 2; i >= 0; --i)
    sum = V::fmadd(sum, minus_r, V::broadcast((i % 2 == 0 ? 1 : -1) * inverse_factorial<C>(i)));
  return V::inverse(V::fmadd(sum, V::power_of_2(shifted), V::broadcast(1)));
}

// relu6(x + 3) / 6
template <typename T>
inline typename Vec<T>::Reg hard_sigmoid_of(typename Vec<T>::Reg x) {
  using V = Vec<T>;
  return V::mul(V::clamp(V::add(x, V::broadcast(3)), V::zero(), V::broadcast(6)), V::broadcast(Compute<T>(1) / 6));
}

template <typename T>
inline typename Vec<T>::Reg silu_of(typename Vec<T>::Reg x) {
  using V = Vec<T>;
  // Below that silu is nothing, but sigmoid_of's least value is not, which would count times a large x.
  const typename V::Reg least = V::broadcast(-ExpOf<Compute<T>>::kMost);
  return V::mul(V::select(V::greater(least, x), least, x), sigmoid_of<T>(x));
}

// What an epilogue applies to its registers: a rectifier, or nothing of any other activation.
template <typename T>
class Rectifier {
  using V = Vec<T>;
  using Reg = typename V::Reg;

 public:
  explicit Rectifier(Activation activation)
      : least_(V::broadcast(activation == Activation::relu || activation == Activation::relu6 ? 0 : -kInfinity)),
        most_(V::broadcast(activation == Activation::relu6 ? 6 : kInfinity)) {}
  Reg operator()(Reg y) const { return V::clamp(y, least_, most_); }

 private:
  static constexpr auto kInfinity = static_cast<Compute<T>>(__builtin_inf());
  Reg least_, most_;
};

// Applies an activation to rows of channels, of which at(row) is the first one.
template <typename T, typename At>
inline void activate(Activation activation, int64_t rows, int64_t channels, const At& at) {
  using V = Vec<T>;
  using Reg = typename V::Reg;
  const auto apply = [&](auto function) {
    for (int64_t row = 0; row < rows; ++row) {
      T* data = at(row);
      int64_t c = 0;
      for (; c + V::kWidth <= channels; c += V::kWidth) V::store(data + c, function(V::load(data + c)));
      if (const int rest = static_cast<int>(channels - c); rest > 0)
        V::store_first(data + c, function(V::load_first(data + c, rest)), rest);
    }
  };
  switch (activation) {
    case Activation::none:
      break;
    case Activation::relu:
    case Activation::relu6:
      return apply(Rectifier<T>(activation));
    case Activation::sigmoid:
      return apply([](Reg x) { return sigmoid_of<T>(x); });
    case Activation::hard_sigmoid:
      return apply([](Reg x) { return hard_sigmoid_of<T>(x); });
    case Activation::hard_swish:
      return apply([](Reg x) { return V::mul(x, hard_sigmoid_of<T>(x)); });
    case Activation::silu:
      return apply([](Reg x) { return silu_of<T>(x); });
  }
}

template <typename T>
[[gnu::noinline]] void activation(const ActivationArgs<T>& args) {
  const ActivationArgs<T> a = args;
  activate<T>(a.activation, a.rows, a.channels, [&](int64_t row) { return a.data + row * a.stride; });
}

// What an epilogue that stores its registers rectified leaves of an activation, while the rows are near.
template <typename T>
inline void finish_activation(const ActivationArgs<T>& a) {
  if (is_rectifier(a.activation)) return;
  if (a.stride != a.channels) return activation<T>(a);
  activation<T>({a.data, a.rows * a.channels, 1, a.rows * a.channels, a.activation});
}

// The same of rows at offsets of their own.
template <typename T>
[[gnu::noinline]] void finish_pixels(Activation activation, T* output, const int64_t* offsets, int64_t pixels,
                                     int64_t channels) {
  activate<T>(activation, pixels, channels, [&](int64_t pixel) { return output + offsets[pixel]; });
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
