// Batch norm over rows of channels (Ioffe and Szegedy 2015): lanes are channels. Every kernel keeps what belongs to a
// few registers of channels in registers while the tile's rows pass: measured at memcpy's speed, against 1.1 to 1.3
// times its time for loading scale and shift again in each row.
// Included once per instruction set.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// Registers of channels that fill whole bytes of the mask.
template <typename T>
constexpr int kByteRegisters = Vec<T>::kWidth < 8 ? 8 / Vec<T>::kWidth : 1;

// Rows that a reduction sums apart: with two sums and one constant for each register of channels that is at most 20 of
// 32 registers for AVX-512, 10 of 16 elsewhere, and chains enough to hide the latency.
constexpr int kSumChains = 2;
constexpr int kFirstRows = 8;  // the statistics' first block

template <bool kWhole, typename T>
typename Vec<T>::Reg load_lanes(const T* p, int lanes) {
  return kWhole ? Vec<T>::load(p) : Vec<T>::load_first(p, lanes);
}

template <bool kWhole, typename T>
void store_lanes(T* p, typename Vec<T>::Reg a, int lanes) {
  kWhole ? Vec<T>::store(p, a) : Vec<T>::store_first(p, a, lanes);
}

// Cuts channels into blocks of as many registers as the tiles of the convolutions have, then of kGroup registers, the
// last one perhaps not whole: step<registers, whole>(first channel, its channels).
template <typename T, int kGroup, typename Step>
void for_each_channel_block(int64_t channels, Step step) {
  constexpr int wide = kMaxVectors > kGroup ? kMaxVectors : kGroup;
  constexpr int wide_lanes = wide * Vec<T>::kWidth, lanes = kGroup * Vec<T>::kWidth;
  int64_t c = 0;
  for (; c + wide_lanes <= channels; c += wide_lanes) step.template operator()<wide, true>(c, wide_lanes);
  for (; c + lanes <= channels; c += lanes) step.template operator()<kGroup, true>(c, lanes);
  if (c < channels) step.template operator()<kGroup, false>(c, static_cast<int>(channels - c));
}

// The valid lanes of a block's register v.
template <bool kWhole, typename T>
int lanes_of(int channels, int v) {
  constexpr int width = Vec<T>::kWidth;
  const int rest = channels - v * width;
  return kWhole || rest > width ? width : rest < 0 ? 0 : rest;
}

// Zero where a mean is not finite: a shift by it would make NaN of every difference, and lose the infinity.
template <typename T>
typename Vec<T>::Reg usable_shift(typename Vec<T>::Reg mean) {
  using V = Vec<T>;
  const typename V::Reg difference = V::sub(mean, mean);
  return V::select(V::equal(difference, difference), mean, V::zero());
}

// One block of rows is summed in T, shifted by the mean so far so that a mean far from zero does not cancel; the blocks
// are merged in double (Chan, Golub and LeVeque 1979). The first block is shifted by its first row, and is short: were
// that row far from the others, the sums would lose as many digits as the block's length has.
template <typename T, int kRegisters, bool kWhole>
void stats_block(const BatchNormStatsArgs<T>& a, int64_t channel, int valid) {
  using V = Vec<T>;
  constexpr int width = V::kWidth;
  const int lanes = lanes_of<kWhole, T>(valid, kRegisters - 1);
  double* sum = a.sum + channel;
  double* square = a.square + channel;
  T shift[kRegisters * width], s1[kRegisters * width], s2[kRegisters * width];
  for (int i = 0; i < valid; ++i) sum[i] = square[i] = 0, shift[i] = a.input[channel + i];
  for (int i = valid; i < kRegisters * width; ++i) shift[i] = 0;

  int64_t rows = 0;
  for (int64_t row = 0; row < a.rows; row += rows) {
    const int64_t block_rows = row == 0 ? kFirstRows : a.block_rows;
    rows = a.rows - row < block_rows ? a.rows - row : block_rows;
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
  for_each_channel_block<T, 1>(a.channels, [&]<int kRegisters, bool kWhole>(int64_t channel, int channels) {
    stats_block<T, kRegisters, kWhole>(a, channel, channels);
  });
}

// Blocks of rows summed in T, added up in double.
template <typename T, int kRegisters, bool kWhole, bool kMask, bool kResult>
void grad_sums_block(const BatchNormGradSumsArgs<T>& a, int64_t channel, int valid) {
  using V = Vec<T>;
  constexpr int width = V::kWidth;
  const int lanes = lanes_of<kWhole, T>(valid, kRegisters - 1);
  double* sum = a.sum + channel;
  double* product = a.product + channel;
  for (int i = 0; i < valid; ++i) sum[i] = product[i] = 0;
  typename V::Reg mean[kRegisters], scale[kRegisters];
  for (int v = 0; v < kRegisters; ++v) {
    mean[v] = load_lanes<kWhole>(a.mean + channel + v * width, lanes);
    if constexpr (kResult) scale[v] = load_lanes<kWhole>(a.scale + channel + v * width, lanes);
  }

  for (int64_t row = 0; row < a.rows; row += a.block_rows) {
    const int64_t rows = a.rows - row < a.block_rows ? a.rows - row : a.block_rows;
    const T* g = a.grad_output + row * a.grad_stride + channel;
    const T* x = a.input + row * a.row_stride + channel;
    const uint8_t* bits = kMask ? a.mask + row * a.mask_stride : nullptr;
    const T* addend = kResult ? a.addend + row * a.addend_stride + channel : nullptr;
    T* result = kResult ? a.result + row * a.result_stride + channel : nullptr;
    typename V::Reg total[kSumChains][kRegisters], products[kSumChains][kRegisters];
    for (int j = 0; j < kSumChains; ++j)
      for (int v = 0; v < kRegisters; ++v) total[j][v] = products[j][v] = V::zero();
    const auto add_row = [&](int j, int64_t r) {
#pragma GCC unroll 4
      for (int v = 0; v < kRegisters; ++v) {
        const int64_t at = r * a.row_stride + v * width;
        const typename V::Reg grad =
            pass_gradient<kMask, T>(load_lanes<kWhole>(g + r * a.grad_stride + v * width, lanes),
                                    bits + r * a.mask_stride, channel + v * width, lanes);
        total[j][v] = V::add(total[j][v], grad);
        products[j][v] = V::fmadd(grad, V::sub(load_lanes<kWhole>(x + at, lanes), mean[v]), products[j][v]);
        if constexpr (kResult) {
          const typename V::Reg sum = load_lanes<kWhole>(addend + r * a.addend_stride + v * width, lanes);
          store_lanes<kWhole>(result + r * a.result_stride + v * width, V::fmadd(grad, scale[v], sum), lanes);
        }
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
  for_each_channel_block<T, 1>(a.channels, [&]<int kRegisters, bool kWhole>(int64_t channel, int channels) {
    const auto with_result = [&]<bool kMask>() {
      a.result != nullptr ? grad_sums_block<T, kRegisters, kWhole, kMask, true>(a, channel, channels)
                          : grad_sums_block<T, kRegisters, kWhole, kMask, false>(a, channel, channels);
    };
    a.mask != nullptr ? with_result.template operator()<true>() : with_result.template operator()<false>();
  });
}

template <typename T, int kRegisters, bool kWhole, bool kResidual, bool kRelu, bool kMask>
void apply_block(const BatchNormApplyArgs<T>& a, int64_t channel, int channels) {
  using V = Vec<T>;
  constexpr int width = V::kWidth;
  typename V::Reg mean[kRegisters], scale[kRegisters], shift[kRegisters];
  int lanes[kRegisters];
  for (int v = 0; v < kRegisters; ++v) {
    lanes[v] = lanes_of<kWhole, T>(channels, v);
    mean[v] = load_lanes<kWhole>(a.mean + channel + v * width, lanes[v]);
    scale[v] = load_lanes<kWhole>(a.scale + channel + v * width, lanes[v]);
    shift[v] = load_lanes<kWhole>(a.shift + channel + v * width, lanes[v]);
  }
  const T* x = a.input + channel;
  const T* residual = kResidual ? a.residual + channel : nullptr;
  T* output = a.output + channel;
  uint8_t* mask = kMask ? a.mask + channel / 8 : nullptr;
  for (int64_t row = 0; row < a.rows; ++row) {
    uint64_t bits = 0;
#pragma GCC unroll 4
    for (int v = 0; v < kRegisters; ++v) {
      const int at = v * width;
      typename V::Reg y = V::fmadd(V::sub(load_lanes<kWhole>(x + at, lanes[v]), mean[v]), scale[v], shift[v]);
      if constexpr (kResidual) y = V::add(y, load_lanes<kWhole>(residual + at, lanes[v]));
      if constexpr (kRelu) y = V::relu(y);
      store_lanes<kWhole>(output + at, y, lanes[v]);
      // The gradient passes all but zeros: what is above zero, and NaN.
      if constexpr (kMask)
        bits |= static_cast<uint64_t>(~V::bits(V::equal(y, V::zero())) & ((1u << lanes[v]) - 1)) << at;
    }
    if constexpr (kMask) store_bits<kWhole ? kRegisters * width : 0>(mask, bits, channels);
    x += a.row_stride, output += a.output_stride;
    if constexpr (kResidual) residual += a.residual_stride;
    if constexpr (kMask) mask += a.mask_stride;
  }
}

template <typename T>
void batch_norm_apply(const BatchNormApplyArgs<T>& a) {
  for_each_channel_block<T, kByteRegisters<T>>(
      a.channels, [&]<int kRegisters, bool kWhole>(int64_t channel, int channels) {
        const auto run = [&]<bool kRelu, bool kMask>() {
          a.residual != nullptr ? apply_block<T, kRegisters, kWhole, true, kRelu, kMask>(a, channel, channels)
                                : apply_block<T, kRegisters, kWhole, false, kRelu, kMask>(a, channel, channels);
        };
        if (!a.relu) return run.template operator()<false, false>();
        a.mask == nullptr ? run.template operator()<true, false>() : run.template operator()<true, true>();
      });
}

template <typename T, int kRegisters, bool kWhole, bool kInput, bool kMask, bool kResidual>
void grad_input_block(const BatchNormGradInputArgs<T>& a, int64_t channel, int channels) {
  using V = Vec<T>;
  constexpr int width = V::kWidth;
  typename V::Reg mean[kRegisters], scale[kRegisters], slope[kRegisters], offset[kRegisters];
  const int lanes = lanes_of<kWhole, T>(channels, kRegisters - 1);
  for (int v = 0; v < kRegisters; ++v) {
    scale[v] = load_lanes<kWhole>(a.scale + channel + v * width, lanes);
    if constexpr (kInput) {
      mean[v] = load_lanes<kWhole>(a.mean + channel + v * width, lanes);
      slope[v] = load_lanes<kWhole>(a.slope + channel + v * width, lanes);
      offset[v] = load_lanes<kWhole>(a.offset + channel + v * width, lanes);
    }
  }
  for (int64_t row = 0; row < a.rows; ++row) {
    const int64_t first = row * a.row_stride + channel, first_result = row * a.output_stride + channel;
    const T* grad_output = a.grad_output + row * a.grad_stride + channel;
#pragma GCC unroll 4
    for (int v = 0; v < kRegisters; ++v) {
      const int64_t at = first_result + v * width;
      const typename V::Reg grad = pass_gradient<kMask, T>(load_lanes<kWhole>(grad_output + v * width, lanes),
                                                           a.mask + row * a.mask_stride, channel + v * width, lanes);
      if constexpr (kResidual) store_lanes<kWhole>(a.grad_residual + at, grad, lanes);
      typename V::Reg result;
      if constexpr (kInput) {
        const typename V::Reg x = V::sub(load_lanes<kWhole>(a.input + first + v * width, lanes), mean[v]);
        result = V::fmadd(grad, scale[v], V::fmadd(x, slope[v], offset[v]));
      } else {
        result = V::mul(grad, scale[v]);
      }
      store_lanes<kWhole>(a.grad_input + at, result, lanes);
    }
  }
}

template <typename T>
void batch_norm_grad_input(const BatchNormGradInputArgs<T>& a) {
  for_each_channel_block<T, 1>(a.channels, [&]<int kRegisters, bool kWhole>(int64_t channel, int channels) {
    const auto with_residual = [&]<bool kInput, bool kMask>() {
      a.grad_residual != nullptr ? grad_input_block<T, kRegisters, kWhole, kInput, kMask, true>(a, channel, channels)
                                 : grad_input_block<T, kRegisters, kWhole, kInput, kMask, false>(a, channel, channels);
    };
    const auto with_mask = [&]<bool kInput>() {
      a.mask != nullptr ? with_residual.template operator()<kInput, true>()
                        : with_residual.template operator()<kInput, false>();
    };
    a.input != nullptr ? with_mask.template operator()<true>() : with_mask.template operator()<false>();
  });
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
