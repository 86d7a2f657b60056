// Batch norm over rows of channels (Ioffe and Szegedy 2015): lanes are channels. Reductions keep a few registers of
// channels while the rows pass; what is applied to every element walks along the rows, as memory does.
// Included once per instruction set.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// The lanes of one step along a row: whole registers and whole bytes of the mask.
template <typename T>
constexpr int kStepLanes = Vec<T>::kWidth > 8 ? Vec<T>::kWidth : 8;

// Registers of channels in a reduction, and the rows that it sums apart: with two sums and one constant a register of
// channels that is at most 20 of 32 registers for AVX-512, 10 of 16 elsewhere, and chains enough to hide the latency.
constexpr int kSumRegisters = kMaxVectors;
constexpr int kSumChains = 2;

template <bool kWhole, typename T>
typename Vec<T>::Reg load_lanes(const T* p, int lanes) {
  return kWhole ? Vec<T>::load(p) : Vec<T>::load_first(p, lanes);
}

template <bool kWhole, typename T>
void store_lanes(T* p, typename Vec<T>::Reg a, int lanes) {
  kWhole ? Vec<T>::store(p, a) : Vec<T>::store_first(p, a, lanes);
}

// The mask's bits of a register whose first channel is `channel`; reads only bytes that hold valid lanes.
template <typename T>
uint32_t load_bits(const uint8_t* row, int64_t channel, int lanes) {
  uint16_t bits = 0;
  __builtin_memcpy(&bits, row + channel / 8, lanes > 8 ? 2 : 1);
  return bits >> (channel % 8);
}

inline void store_bits(uint8_t* bytes, uint32_t bits, int lanes) {
  const uint16_t pair = static_cast<uint16_t>(bits);  // little-endian, as every CPU that we build for
  __builtin_memcpy(bytes, &pair, lanes > 8 ? 2 : 1);
}

template <bool kMask, typename T>
typename Vec<T>::Reg pass_gradient(typename Vec<T>::Reg grad, const uint8_t* mask_row, int64_t channel, int lanes) {
  using V = Vec<T>;
  if constexpr (kMask) return V::select(V::from_bits(load_bits<T>(mask_row, channel, lanes)), grad, V::zero());
  return grad;
}

// Calls step(first channel, lanes of the last register) with as many registers as fit, as template arguments.
template <typename T, typename Step>
void for_each_channel_block(int64_t channels, Step step) {
  constexpr int width = Vec<T>::kWidth;
  int64_t c = 0;
  for (; c + kSumRegisters * width <= channels; c += kSumRegisters * width)
    step.template operator()<kSumRegisters, true>(c, width);
  for (; c + width <= channels; c += width) step.template operator()<1, true>(c, width);
  if (c < channels) step.template operator()<1, false>(c, static_cast<int>(channels - c));
}

// Zero where a mean is not finite: a shift by it would make NaN of every difference, and lose the infinity.
template <typename T>
typename Vec<T>::Reg usable_shift(typename Vec<T>::Reg mean) {
  using V = Vec<T>;
  const typename V::Reg difference = V::sub(mean, mean);
  return V::select(V::equal(difference, difference), mean, V::zero());
}

// One block of rows is summed in T, shifted by the mean so far (at first by its first row) so that a mean far from zero
// does not cancel; the blocks are merged in double (Chan, Golub and LeVeque 1979).
template <typename T, int kRegisters, bool kWhole>
void stats_block(const BatchNormStatsArgs<T>& a, int64_t channel, int lanes) {
  using V = Vec<T>;
  constexpr int width = V::kWidth;
  double* sum = a.sum + channel;
  double* square = a.square + channel;
  const int valid = (kRegisters - 1) * width + lanes;
  T shift[kRegisters * width], s1[kRegisters * width], s2[kRegisters * width];
  for (int i = 0; i < valid; ++i) sum[i] = square[i] = 0, shift[i] = a.input[channel + i];
  for (int i = valid; i < kRegisters * width; ++i) shift[i] = 0;

  for (int64_t row = 0; row < a.rows; row += a.block_rows) {
    const int64_t rows = a.rows - row < a.block_rows ? a.rows - row : a.block_rows;
    const T* x = a.input + row * a.row_stride + channel;
    typename V::Reg k[kRegisters], total[kSumChains][kRegisters], squares[kSumChains][kRegisters];
    for (int v = 0; v < kRegisters; ++v) k[v] = usable_shift<T>(V::load(shift + v * width));
    for (int j = 0; j < kSumChains; ++j)
      for (int v = 0; v < kRegisters; ++v) total[j][v] = squares[j][v] = V::zero();

    // 1. Sums of this block.
    int64_t r = 0;
    for (; r + kSumChains <= rows; r += kSumChains, x += kSumChains * a.row_stride)
#pragma GCC unroll 2
      for (int j = 0; j < kSumChains; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < kRegisters; ++v) {
          const typename V::Reg d = V::sub(load_lanes<kWhole>(x + j * a.row_stride + v * width, lanes), k[v]);
          total[j][v] = V::add(total[j][v], d);
          squares[j][v] = V::fmadd(d, d, squares[j][v]);
        }
    for (; r < rows; ++r, x += a.row_stride)
#pragma GCC unroll 4
      for (int v = 0; v < kRegisters; ++v) {
        const typename V::Reg d = V::sub(load_lanes<kWhole>(x + v * width, lanes), k[v]);
        total[0][v] = V::add(total[0][v], d);
        squares[0][v] = V::fmadd(d, d, squares[0][v]);
      }
    for (int v = 0; v < kRegisters; ++v) {
      V::store(shift + v * width, k[v]);
      V::store(s1 + v * width, V::add(total[0][v], total[1][v]));
      V::store(s2 + v * width, V::add(squares[0][v], squares[1][v]));
    }

    // 2. Merged with the blocks before.
    const double n = static_cast<double>(rows), before = static_cast<double>(row);
    const double inverse = 1 / n, inverse_before = row > 0 ? 1 / before : 0, inverse_all = 1 / (before + n);
    const double weight = before * n * inverse_all;
    for (int i = 0; i < valid; ++i) {
      const double block_sum = n * shift[i] + s1[i];
      const double distance = block_sum * inverse - sum[i] * inverse_before;
      square[i] += s2[i] - static_cast<double>(s1[i]) * s1[i] * inverse + distance * distance * weight;
      sum[i] += block_sum;
      shift[i] = static_cast<T>(sum[i] * inverse_all);
    }
  }
}

template <typename T>
void batch_norm_stats(const BatchNormStatsArgs<T>& a) {
  for_each_channel_block<T>(a.channels, [&]<int kRegisters, bool kWhole>(int64_t channel, int lanes) {
    stats_block<T, kRegisters, kWhole>(a, channel, lanes);
  });
}

// Blocks of rows summed in T, added up in double.
template <typename T, int kRegisters, bool kWhole, bool kMask>
void grad_sums_block(const BatchNormGradSumsArgs<T>& a, int64_t channel, int lanes) {
  using V = Vec<T>;
  constexpr int width = V::kWidth;
  const int valid = (kRegisters - 1) * width + lanes;
  double* sum = a.sum + channel;
  double* product = a.product + channel;
  for (int i = 0; i < valid; ++i) sum[i] = product[i] = 0;
  typename V::Reg mean[kRegisters];
  for (int v = 0; v < kRegisters; ++v) mean[v] = load_lanes<kWhole>(a.mean + channel + v * width, lanes);

  for (int64_t row = 0; row < a.rows; row += a.block_rows) {
    const int64_t rows = a.rows - row < a.block_rows ? a.rows - row : a.block_rows;
    const T* g = a.grad_output + row * a.row_stride + channel;
    const T* x = a.input + row * a.row_stride + channel;
    const uint8_t* bits = kMask ? a.mask + row * a.mask_stride : nullptr;
    typename V::Reg total[kSumChains][kRegisters], products[kSumChains][kRegisters];
    for (int j = 0; j < kSumChains; ++j)
      for (int v = 0; v < kRegisters; ++v) total[j][v] = products[j][v] = V::zero();
    const auto add_row = [&](int j, int64_t r) {
#pragma GCC unroll 4
      for (int v = 0; v < kRegisters; ++v) {
        const int64_t at = r * a.row_stride + v * width;
        const typename V::Reg grad = pass_gradient<kMask, T>(load_lanes<kWhole>(g + at, lanes), bits + r * a.mask_stride,
                                                             channel + v * width, lanes);
        total[j][v] = V::add(total[j][v], grad);
        products[j][v] = V::fmadd(grad, V::sub(load_lanes<kWhole>(x + at, lanes), mean[v]), products[j][v]);
      }
    };
    int64_t r = 0;
    for (; r + kSumChains <= rows; r += kSumChains)
#pragma GCC unroll 2
      for (int j = 0; j < kSumChains; ++j) add_row(j, r + j);
    for (; r < rows; ++r) add_row(0, r);
    T s1[kRegisters * width], s2[kRegisters * width];
    for (int v = 0; v < kRegisters; ++v) {
      V::store(s1 + v * width, V::add(total[0][v], total[1][v]));
      V::store(s2 + v * width, V::add(products[0][v], products[1][v]));
    }
    for (int i = 0; i < valid; ++i) sum[i] += s1[i], product[i] += s2[i];
  }
}

template <typename T>
void batch_norm_grad_sums(const BatchNormGradSumsArgs<T>& a) {
  for_each_channel_block<T>(a.channels, [&]<int kRegisters, bool kWhole>(int64_t channel, int lanes) {
    a.mask != nullptr ? grad_sums_block<T, kRegisters, kWhole, true>(a, channel, lanes)
                      : grad_sums_block<T, kRegisters, kWhole, false>(a, channel, lanes);
  });
}

template <typename T, bool kResidual, bool kRelu, bool kMask>
void apply_rows(const BatchNormApplyArgs<T>& a) {
  using V = Vec<T>;
  constexpr int width = V::kWidth, step = kStepLanes<T>;
  const T *input = a.input, *residual = a.residual, *mean = a.mean, *scale = a.scale, *shift = a.shift;
  T* output = a.output;
  uint8_t* mask = a.mask;
  const int64_t channels = a.channels;
  for (int64_t row = 0; row < a.rows; ++row) {
    // Returns the mask's bits of one register.
    const auto apply = [&]<bool kWhole>(int64_t c, int lanes) -> uint32_t {
      const typename V::Reg x = V::sub(load_lanes<kWhole>(input + c, lanes), load_lanes<kWhole>(mean + c, lanes));
      typename V::Reg y = V::fmadd(x, load_lanes<kWhole>(scale + c, lanes), load_lanes<kWhole>(shift + c, lanes));
      if constexpr (kResidual) y = V::add(y, load_lanes<kWhole>(residual + c, lanes));
      if constexpr (kRelu) y = V::relu(y);
      store_lanes<kWhole>(output + c, y, lanes);
      if constexpr (!kMask) return 0;
      return ~V::bits(V::equal(y, V::zero())) & ((1u << lanes) - 1);  // all but zero: above it, or NaN
    };
    int64_t c = 0;
    for (; c + step <= channels; c += step) {
      uint32_t bits = 0;
#pragma GCC unroll 4
      for (int v = 0; v < step; v += width) bits |= apply.template operator()<true>(c + v, width) << v;
      if constexpr (kMask) store_bits(mask + c / 8, bits, step);
    }
    if (c < channels) {
      const int rest = static_cast<int>(channels - c);
      uint32_t bits = 0;
      for (int v = 0; v < rest; v += width)
        bits |= apply.template operator()<false>(c + v, rest - v < width ? rest - v : width) << v;
      if constexpr (kMask) store_bits(mask + c / 8, bits, rest);
    }
    input += a.row_stride, output += a.row_stride;
    if constexpr (kResidual) residual += a.row_stride;
    if constexpr (kMask) mask += a.mask_stride;
  }
}

template <typename T>
void batch_norm_apply(const BatchNormApplyArgs<T>& a) {
  const auto with_residual = [&]<bool kRelu, bool kMask>() {
    a.residual != nullptr ? apply_rows<T, true, kRelu, kMask>(a) : apply_rows<T, false, kRelu, kMask>(a);
  };
  if (!a.relu) return with_residual.template operator()<false, false>();
  if (a.mask == nullptr) return with_residual.template operator()<true, false>();
  with_residual.template operator()<true, true>();
}

template <typename T, bool kInput, bool kMask, bool kResidual>
void grad_input_rows(const BatchNormGradInputArgs<T>& a) {
  using V = Vec<T>;
  constexpr int width = V::kWidth;
  const T *grad_output = a.grad_output, *input = a.input, *mean = a.mean, *scale = a.scale, *slope = a.slope,
          *offset = a.offset;
  const uint8_t* mask = a.mask;
  T *grad_input = a.grad_input, *grad_residual = a.grad_residual;
  for (int64_t row = 0; row < a.rows; ++row) {
    const auto apply = [&]<bool kWhole>(int64_t c, int lanes) {
      const typename V::Reg grad =
          pass_gradient<kMask, T>(load_lanes<kWhole>(grad_output + c, lanes), mask, c, lanes);
      if constexpr (kResidual) store_lanes<kWhole>(grad_residual + c, grad, lanes);
      typename V::Reg result;
      if constexpr (kInput) {
        const typename V::Reg x = V::sub(load_lanes<kWhole>(input + c, lanes), load_lanes<kWhole>(mean + c, lanes));
        result = V::fmadd(x, load_lanes<kWhole>(slope + c, lanes), load_lanes<kWhole>(offset + c, lanes));
        result = V::fmadd(grad, load_lanes<kWhole>(scale + c, lanes), result);
      } else {
        result = V::mul(grad, load_lanes<kWhole>(scale + c, lanes));
      }
      store_lanes<kWhole>(grad_input + c, result, lanes);
    };
    int64_t c = 0;
    for (; c + width <= a.channels; c += width) apply.template operator()<true>(c, width);
    if (c < a.channels) apply.template operator()<false>(c, static_cast<int>(a.channels - c));
    grad_output += a.row_stride, grad_input += a.row_stride;
    if constexpr (kInput) input += a.row_stride;
    if constexpr (kMask) mask += a.mask_stride;
    if constexpr (kResidual) grad_residual += a.row_stride;
  }
}

template <typename T>
void batch_norm_grad_input(const BatchNormGradInputArgs<T>& a) {
  const auto with_residual = [&]<bool kInput, bool kMask>() {
    a.grad_residual != nullptr ? grad_input_rows<T, kInput, kMask, true>(a)
                               : grad_input_rows<T, kInput, kMask, false>(a);
  };
  const auto with_mask = [&]<bool kInput>() {
    a.mask != nullptr ? with_residual.template operator()<kInput, true>()
                      : with_residual.template operator()<kInput, false>();
  };
  a.input != nullptr ? with_mask.template operator()<true>() : with_mask.template operator()<false>();
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
