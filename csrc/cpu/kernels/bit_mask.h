// A ReLU's mask, one bit an element: byte channel / 8 of its row, bit channel % 8.
// Included once per instruction set.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// The mask's bits of a register whose first channel is `channel`; reads only bytes that hold valid lanes.
template <typename T>
uint32_t load_bits(const uint8_t* row, int64_t channel, int lanes) {
  uint16_t bits = 0;
  __builtin_memcpy(&bits, row + channel / 8, lanes > 8 ? 2 : 1);
  return bits >> (channel % 8);
}

// Writes the bytes that hold the bits of `channels` channels; kLanes is that number where it is known, else 0.
template <int kLanes>
void store_bits(uint8_t* bytes, uint64_t bits, int channels) {
  if constexpr (kLanes != 0) {
    __builtin_memcpy(bytes, &bits, kLanes / 8);  // little-endian, as every CPU that we build for
  } else {
    for (int i = 0; i < channels; i += 8) bytes[i / 8] = static_cast<uint8_t>(bits >> i);
  }
}

template <bool kMask, typename T>
typename Vec<T>::Reg pass_gradient(typename Vec<T>::Reg grad, const uint8_t* mask_row, int64_t channel, int lanes) {
  using V = Vec<T>;
  if constexpr (kMask) return V::select(V::from_bits(load_bits<T>(mask_row, channel, lanes)), grad, V::zero());
  return grad;
}

// The mask of the `count` elements from `output` on, at most 64.
template <typename T>
uint64_t relu_bits(const T* output, int count) {
  using V = Vec<T>;
  constexpr int width = V::kWidth;
  uint64_t bits = 0;
#pragma GCC unroll 16
  for (int i = 0; i < count; i += width) {
    const int lanes = count - i < width ? count - i : width;
    const typename V::Reg y = lanes == width ? V::load(output + i) : V::load_first(output + i, lanes);
    bits |= static_cast<uint64_t>(V::bits(V::greater_or_nan(y, V::zero())) & ((1u << lanes) - 1)) << i;
  }
  return bits;
}

template <typename T>
void relu_mask(const ReluMaskArgs<T>& a) {
  for (int64_t row = 0; row < a.rows; ++row) {
    const T* output = a.output + row * a.channels;
    uint8_t* mask = a.mask + row * a.mask_stride;
    int64_t c = 0;
    for (; c + 64 <= a.channels; c += 64) store_bits<64>(mask + c / 8, relu_bits(output + c, 64), 64);
    const int rest = static_cast<int>(a.channels - c);
    if (rest > 0) store_bits<0>(mask + c / 8, relu_bits(output + c, rest), rest);
  }
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
