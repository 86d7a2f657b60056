// Batch norm over rows of channels (Ioffe and Szegedy 2015): lanes are channels. Every kernel reads its tile in the
// order of memory, a few rows at a time: strides through memory, channel block by channel block, leave the prefetchers
// behind (9 GB/s against 20 at 256 channels), and the rows share what belongs to their channels. Included once per
// instruction set, after pool2d.h.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// Registers of channels that fill whole bytes of the mask.
template <typename T>
constexpr int kByteRegisters = Vec<T>::kWidth < 8 ? 8 / Vec<T>::kWidth : 1;

// Rows that a step takes. More share more, but are more streams.
constexpr int kGroupRows = 4;
constexpr int kFirstRows = 8;  // the statistics' first block

template <bool kWhole, typename T>
typename Vec<T>::Reg load_lanes(const T* p, int lanes) {
  return kWhole ? Vec<T>::load(p) : Vec<T>::load_first(p, lanes);
}

template <bool kWhole, typename T>
void store_lanes(T* p, typename Vec<T>::Reg a, int lanes) {
  kWhole ? Vec<T>::store(p, a) : Vec<T>::store_first(p, a, lanes);
}

// With kStreamed around the caches.
template <bool kStreamed, bool kWhole, typename T>
void store_result(T* p, typename Vec<T>::Reg a, int lanes) {
  kStreamed&& kWhole ? Vec<T>::stream(p, a) : store_lanes<kWhole>(p, a, lanes);
}

// The valid lanes of a block's register v.
template <bool kWhole, typename T>
int lanes_of(int channels, int v) {
  constexpr int width = Vec<T>::kWidth;
  const int rest = channels - v * width;
  return kWhole || rest > width ? width : rest < 0 ? 0 : rest;
}

// Calls step<rows, registers, whole>(first row, rows, first channel, its channels) for the channels in blocks of as
// many registers as the tiles of the convolutions have, then of kGroup registers, the last one perhaps not whole. Where
// one block holds all channels, it keeps what belongs to them in registers for all rows (`rows` is 0 in the template:
// known when running); else groups of kGroupRows rows, then single ones, pass block after block.
template <typename T, int kGroup, typename Step>
FASTCNN_INLINE inline void over_rows_of_channels(int64_t rows, int64_t channels, Step step) {
  constexpr int wide = kMaxVectors > kGroup ? kMaxVectors : kGroup;
  constexpr int wide_lanes = wide * Vec<T>::kWidth, lanes = kGroup * Vec<T>::kWidth;
  if (channels == wide_lanes) return step.template operator()<0, wide, true>(0, rows, 0, wide_lanes);
  const auto over_channels = [&]<int kRows>(int64_t row) FASTCNN_INLINE {
    int64_t c = 0;
    for (; c + wide_lanes <= channels; c += wide_lanes)
      step.template operator()<kRows, wide, true>(row, kRows, c, wide_lanes);
    for (; c + lanes <= channels; c += lanes) step.template operator()<kRows, kGroup, true>(row, kRows, c, lanes);
    if (c < channels) step.template operator()<kRows, kGroup, false>(row, kRows, c, static_cast<int>(channels - c));
  };
  int64_t row = 0;
  for (; row + kGroupRows <= rows; row += kGroupRows) over_channels.template operator()<kGroupRows>(row);
  for (; row < rows; ++row) over_channels.template operator()<1>(row);
}

// Asks the second cache for what a step reads one group of rows and kAhead bytes later, where the memory of a tile has
// no gaps: in all, one stream in the order of memory. Without it the rows of a group are streams of their own within a
// page, which the hardware does not follow; asking the first cache does not help, either.
template <int kRows, int kRegisters, typename T>
FASTCNN_INLINE inline void prefetch_step(const T* tile, int64_t row_stride, int64_t channels, int64_t row,
                                         int64_t channel) {
  if (kRows == 0 || row_stride != channels) return;
  constexpr int kAhead = 2048, kLine = 64;
  constexpr int kLines = kRows * kRegisters * Vec<T>::kWidth * static_cast<int>(sizeof(T)) / kLine;
  const char* next = reinterpret_cast<const char*>(tile + (row + kRows) * row_stride + channel * kRows) + kAhead;
#pragma GCC unroll 32
  for (int i = 0; i < kLines; ++i) __builtin_prefetch(next + i * kLine, 0, 2);
}

// Adds a block of rows to s1 and s2 [kMaxBatchNormTileChannels]: the sums of x - shift and of its squares.
template <typename T>
void add_stats(const BatchNormStatsArgs<T> a, const T* input, int64_t rows, const Compute<T>* shift, Compute<T>* s1,
               Compute<T>* s2) {
  using V = Vec<T>;
  over_rows_of_channels<T, 1>(
      rows, a.channels,
      [=]<int kRows, int kRegisters, bool kWhole>(int64_t row, int64_t count, int64_t c, int lanes) FASTCNN_INLINE {
        if constexpr (kWhole) lanes = V::kWidth;
        prefetch_step<kRows, kRegisters>(input, a.row_stride, a.channels, row, c);
        const T* x = input + row * a.row_stride + c;
        typename V::Reg k[kRegisters], total[kRegisters], squares[kRegisters];
        for (int v = 0; v < kRegisters; ++v) {
          const int at = v * V::kWidth;
          k[v] = V::load(shift + c + at), total[v] = V::load(s1 + c + at), squares[v] = V::load(s2 + c + at);
        }
#pragma GCC unroll 4
        for (int64_t j = 0; j < (kRows > 0 ? kRows : count); ++j)
#pragma GCC unroll 4
          for (int v = 0; v < kRegisters; ++v) {
            const typename V::Reg d = V::sub(load_lanes<kWhole>(x + j * a.row_stride + v * V::kWidth, lanes), k[v]);
            total[v] = V::add(total[v], d);
            squares[v] = V::fmadd(d, d, squares[v]);
          }
        for (int v = 0; v < kRegisters; ++v) {
          V::store(s1 + c + v * V::kWidth, total[v]);
          V::store(s2 + c + v * V::kWidth, squares[v]);
        }
      });
}

// One block of rows is summed in the compute type, shifted by the mean so far so that a mean far from zero does not
// cancel; the blocks are merged in double (Chan, Golub and LeVeque 1979). The first block is shifted by its first row,
// and is short: were that row far from the others, the sums would lose as many digits as the block's length has.
template <typename T>
void batch_norm_stats(const BatchNormStatsArgs<T>& args) {
  const BatchNormStatsArgs<T> a = args;
  constexpr int64_t kRoom = kMaxBatchNormTileChannels + Vec<T>::kWidth;  // the last register may not be whole
  using C = Compute<T>;
  alignas(64) C shift[kRoom], s1[kRoom], s2[kRoom];
  double* __restrict__ sum = a.sum;
  double* __restrict__ square = a.square;
  // Zero where a mean is not finite: a shift by it would make NaN of every difference, and lose the infinity.
  const auto usable = [](C mean) { return mean - mean == 0 ? mean : C(0); };
  const int64_t padded = a.channels + Vec<T>::kWidth;
  for (int64_t i = 0; i < a.channels; ++i) sum[i] = square[i] = 0, shift[i] = usable(widen(a.input[i]));
  for (int64_t i = a.channels; i < padded; ++i) shift[i] = 0;

  int64_t rows = 0;
  for (int64_t row = 0; row < a.rows; row += rows) {
    const int64_t block_rows = row == 0 ? kFirstRows : a.block_rows;
    rows = a.rows - row < block_rows ? a.rows - row : block_rows;
    for (int64_t i = 0; i < padded; ++i) s1[i] = s2[i] = 0;
    add_stats(a, a.input + row * a.row_stride, rows, shift, s1, s2);
    const double n = static_cast<double>(rows), before = static_cast<double>(row);
    const double inverse = 1 / n, inverse_before = row > 0 ? 1 / before : 0, inverse_all = 1 / (before + n);
    const double weight = before * n * inverse_all;
    for (int64_t i = 0; i < a.channels; ++i) {
      const double s = s1[i], block_sum = n * shift[i] + s;
      const double distance = block_sum * inverse - sum[i] * inverse_before;
      square[i] += s2[i] - s * s * inverse + distance * distance * weight;
      sum[i] += block_sum;
      shift[i] = usable(static_cast<C>(sum[i] * inverse_all));
    }
  }
}

// Blocks of rows summed in the compute type, added up in double.
template <bool kMask, bool kResult, typename T>
void grad_sums_tile(const BatchNormGradSumsArgs<T> a) {
  using V = Vec<T>;
  constexpr int64_t kRoom = kMaxBatchNormTileChannels + V::kWidth;
  alignas(64) Compute<T> s1[kRoom], s2[kRoom], mean[kRoom];
  Compute<T>*const grads = s1, *const products_of = s2, *const means = mean;
  double* __restrict__ sum = a.sum;
  double* __restrict__ product = a.product;
  const int64_t padded = a.channels + V::kWidth;
  for (int64_t i = 0; i < a.channels; ++i) sum[i] = product[i] = 0, mean[i] = a.mean[i];
  for (int64_t i = a.channels; i < padded; ++i) mean[i] = 0;
  for (int64_t block = 0; block < a.rows; block += a.block_rows) {
    const int64_t rows = a.rows - block < a.block_rows ? a.rows - block : a.block_rows;
    for (int64_t i = 0; i < padded; ++i) s1[i] = s2[i] = 0;
    over_rows_of_channels<T, 1>(
        rows, a.channels,
        [=]<int kRows, int kRegisters, bool kWhole>(int64_t r, int64_t count, int64_t c, int lanes) FASTCNN_INLINE {
          if constexpr (kWhole) lanes = V::kWidth;
          const int64_t row = block + r;
          prefetch_step<kRows, kRegisters>(a.grad_output, a.grad_stride, a.channels, row, c);
          prefetch_step<kRows, kRegisters>(a.input, a.row_stride, a.channels, row, c);
          const T *g = a.grad_output + row * a.grad_stride + c, *x = a.input + row * a.row_stride + c;
          const uint8_t* bits = kMask ? a.mask + row * a.mask_stride : nullptr;
          const T* addend = kResult ? a.addend + row * a.addend_stride + c : nullptr;
          T* result = kResult ? a.result + row * a.result_stride + c : nullptr;
          typename V::Reg k[kRegisters], total[kRegisters], products[kRegisters], scale[kRegisters];
          for (int v = 0; v < kRegisters; ++v) {
            const int64_t at = c + v * V::kWidth;
            if constexpr (kResult) scale[v] = load_lanes<kWhole>(a.scale + at, lanes);
            k[v] = V::load(means + at), total[v] = V::load(grads + at), products[v] = V::load(products_of + at);
          }
#pragma GCC unroll 4
          for (int64_t j = 0; j < (kRows > 0 ? kRows : count); ++j)
#pragma GCC unroll 4
            for (int v = 0; v < kRegisters; ++v) {
              const int at = v * V::kWidth;
              const typename V::Reg grad = pass_gradient<kMask, T>(
                  load_lanes<kWhole>(g + j * a.grad_stride + at, lanes), bits + j * a.mask_stride, c + at, lanes);
              total[v] = V::add(total[v], grad);
              products[v] =
                  V::fmadd(grad, V::sub(load_lanes<kWhole>(x + j * a.row_stride + at, lanes), k[v]), products[v]);
              if constexpr (kResult) {
                const typename V::Reg sum = load_lanes<kWhole>(addend + j * a.addend_stride + at, lanes);
                store_lanes<kWhole>(result + j * a.result_stride + at, V::fmadd(grad, scale[v], sum), lanes);
              }
            }
          for (int v = 0; v < kRegisters; ++v) {
            V::store(grads + c + v * V::kWidth, total[v]);
            V::store(products_of + c + v * V::kWidth, products[v]);
          }
        });
    for (int64_t i = 0; i < a.channels; ++i) sum[i] += s1[i], product[i] += s2[i];
  }
}

template <typename T>
void batch_norm_grad_sums(const BatchNormGradSumsArgs<T>& a) {
  const auto with_result = [&]<bool kMask>() {
    a.result != nullptr ? grad_sums_tile<kMask, true>(a) : grad_sums_tile<kMask, false>(a);
  };
  a.mask != nullptr ? with_result.template operator()<true>() : with_result.template operator()<false>();
}

template <bool kStreamed, bool kResidual, bool kRelu, bool kMask, typename T>
void apply_tile(const BatchNormApplyArgs<T> a) {
  using V = Vec<T>;
  over_rows_of_channels<T, kByteRegisters<T>>(
      a.rows, a.channels,
      [=]<int kRows, int kRegisters, bool kWhole>(int64_t row, int64_t count, int64_t c, int channels) FASTCNN_INLINE {
        if constexpr (kStreamed) prefetch_step<kRows, kRegisters>(a.input, a.row_stride, a.channels, row, c);
        if constexpr (kStreamed && kResidual)
          prefetch_step<kRows, kRegisters>(a.residual, a.residual_stride, a.channels, row, c);
        typename V::Reg mean[kRegisters], scale[kRegisters], shift[kRegisters];
        int lanes[kRegisters];
        for (int v = 0; v < kRegisters; ++v) {
          const int64_t at = c + v * V::kWidth;
          lanes[v] = lanes_of<kWhole, T>(channels, v);
          mean[v] = load_lanes<kWhole>(a.mean + at, lanes[v]);
          scale[v] = load_lanes<kWhole>(a.scale + at, lanes[v]);
          shift[v] = load_lanes<kWhole>(a.shift + at, lanes[v]);
        }
#pragma GCC unroll 4
        for (int64_t j = 0; j < (kRows > 0 ? kRows : count); ++j) {
          const T* x = a.input + (row + j) * a.row_stride + c;
          const T* residual = kResidual ? a.residual + (row + j) * a.residual_stride + c : nullptr;
          T* output = a.output + (row + j) * a.output_stride + c;
          uint64_t bits = 0;
#pragma GCC unroll 4
          for (int v = 0; v < kRegisters; ++v) {
            const int at = v * V::kWidth;
            typename V::Reg y = V::fmadd(V::sub(load_lanes<kWhole>(x + at, lanes[v]), mean[v]), scale[v], shift[v]);
            if constexpr (kResidual) y = V::add(y, load_lanes<kWhole>(residual + at, lanes[v]));
            if constexpr (kRelu) y = V::relu(y);
            store_result<kStreamed, kWhole>(output + at, y, lanes[v]);
            // The gradient passes all but zeros: what is above zero, and NaN.
            if constexpr (kMask)
              bits |= static_cast<uint64_t>(~V::bits(V::equal(y, V::zero())) & ((1u << lanes[v]) - 1))
                      << (v * V::kWidth);
          }
          if constexpr (kMask)
            store_bits<kWhole ? kRegisters * V::kWidth : 0>(a.mask + (row + j) * a.mask_stride + c / 8, bits, channels);
        }
      });
}

template <typename T>
void batch_norm_apply(const BatchNormApplyArgs<T>& a) {
  const auto with_residual = [&]<bool kStreamed, bool kRelu, bool kMask>() {
    a.residual != nullptr ? apply_tile<kStreamed, true, kRelu, kMask>(a)
                          : apply_tile<kStreamed, false, kRelu, kMask>(a);
  };
  const auto run = [&]<bool kStreamed>() {
    if (!a.relu) return with_residual.template operator()<kStreamed, false, false>();
    a.mask == nullptr ? with_residual.template operator()<kStreamed, true, false>()
                      : with_residual.template operator()<kStreamed, true, true>();
  };
  if (!a.streamed) return run.template operator()<false>();
  run.template operator()<true>();
  Vec<T>::finish_streams();
}

template <bool kStreamed, bool kInput, bool kMask, bool kResidual, typename T>
void grad_input_tile(const BatchNormGradInputArgs<T> a) {
  using V = Vec<T>;
  over_rows_of_channels<T, 1>(
      a.rows, a.channels,
      [=]<int kRows, int kRegisters, bool kWhole>(int64_t row, int64_t count, int64_t c, int lanes) FASTCNN_INLINE {
        if constexpr (kWhole) lanes = V::kWidth;
        if constexpr (kStreamed) prefetch_step<kRows, kRegisters>(a.grad_output, a.grad_stride, a.channels, row, c);
        if constexpr (kStreamed && kInput) prefetch_step<kRows, kRegisters>(a.input, a.row_stride, a.channels, row, c);
        typename V::Reg mean[kRegisters], scale[kRegisters], slope[kRegisters], offset[kRegisters];
        for (int v = 0; v < kRegisters; ++v) {
          const int64_t at = c + v * V::kWidth;
          scale[v] = load_lanes<kWhole>(a.scale + at, lanes);
          if constexpr (kInput) {
            mean[v] = load_lanes<kWhole>(a.mean + at, lanes);
            slope[v] = load_lanes<kWhole>(a.slope + at, lanes);
            offset[v] = load_lanes<kWhole>(a.offset + at, lanes);
          }
        }
#pragma GCC unroll 4
        for (int64_t j = 0; j < (kRows > 0 ? kRows : count); ++j) {
          const int64_t first = (row + j) * a.row_stride + c, first_result = (row + j) * a.output_stride + c;
          const T* grad_output = a.grad_output + (row + j) * a.grad_stride + c;
#pragma GCC unroll 4
          for (int v = 0; v < kRegisters; ++v) {
            const int64_t at = first_result + v * V::kWidth;
            const typename V::Reg grad =
                pass_gradient<kMask, T>(load_lanes<kWhole>(grad_output + v * V::kWidth, lanes),
                                        a.mask + (row + j) * a.mask_stride, c + v * V::kWidth, lanes);
            if constexpr (kResidual) store_result<kStreamed, kWhole>(a.grad_residual + at, grad, lanes);
            typename V::Reg result;
            if constexpr (kInput) {
              const typename V::Reg x = V::sub(load_lanes<kWhole>(a.input + first + v * V::kWidth, lanes), mean[v]);
              result = V::fmadd(grad, scale[v], V::fmadd(x, slope[v], offset[v]));
            } else {
              result = V::mul(grad, scale[v]);
            }
            store_result<kStreamed, kWhole>(a.grad_input + at, result, lanes);
          }
        }
      });
}

template <typename T>
void batch_norm_grad_input(const BatchNormGradInputArgs<T>& a) {
  const auto with_residual = [&]<bool kStreamed, bool kInput, bool kMask>() {
    a.grad_residual != nullptr ? grad_input_tile<kStreamed, kInput, kMask, true>(a)
                               : grad_input_tile<kStreamed, kInput, kMask, false>(a);
  };
  const auto with_mask = [&]<bool kStreamed, bool kInput>() {
    a.mask != nullptr ? with_residual.template operator()<kStreamed, kInput, true>()
                      : with_residual.template operator()<kStreamed, kInput, false>();
  };
  const auto run = [&]<bool kStreamed>() {
    a.input != nullptr ? with_mask.template operator()<kStreamed, true>()
                       : with_mask.template operator()<kStreamed, false>();
  };
  if (!a.streamed) return run.template operator()<false>();
  run.template operator()<true>();
  Vec<T>::finish_streams();
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
