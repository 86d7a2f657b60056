// The output's gradient on its way in: through a fused ReLU, made dense, and summed for the bias, all in one pass.
// Included once per instruction set.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// A run of rows for one register of channels; `kWhole` where all its lanes are valid.
template <typename T, bool kMask, bool kStore, bool kWhole>
typename Vec<T>::Reg grad_output_run(const Conv2dGradOutputArgs<T>& a, int64_t row, int64_t end, int64_t c, int lanes) {
  using V = Vec<T>;
  const T* grad = a.grad_output + row * a.grad_stride + c;
  typename V::Reg sum = V::zero();
  for (int64_t r = row; r < end; ++r, grad += a.grad_stride) {
    typename V::Reg g = kWhole ? V::load(grad) : V::load_first(grad, lanes);
    g = pass_gradient<kMask, T>(g, a.activated + r * a.mask_stride, c, lanes);
    if constexpr (kStore) {
      T* out = a.grad + r * a.channels + c;
      kWhole ? V::store(out, g) : V::store_first(out, g, lanes);
    }
    sum = V::add(sum, g);
  }
  return sum;
}

template <typename T, bool kMask, bool kStore>
void grad_output_rows(const Conv2dGradOutputArgs<T>& a) {
  using V = Vec<T>;
  constexpr int64_t kRunRows = 64;  // rows summed as they are before they join the double sum
  for (int64_t row = 0; row < a.rows; row += kRunRows) {
    const int64_t end = row + kRunRows < a.rows ? row + kRunRows : a.rows;
    for (int64_t c = 0; c < a.channels; c += V::kWidth) {
      const int lanes = static_cast<int>(a.channels - c < V::kWidth ? a.channels - c : V::kWidth);
      const typename V::Reg sum = lanes == V::kWidth ? grad_output_run<T, kMask, kStore, true>(a, row, end, c, lanes)
                                                     : grad_output_run<T, kMask, kStore, false>(a, row, end, c, lanes);
      if (a.sums == nullptr) continue;
      Compute<T> values[V::kWidth];
      V::store(values, sum);
      for (int i = 0; i < lanes; ++i) a.sums[c + i] += static_cast<double>(values[i]);
    }
  }
}

template <typename T>
void conv2d_grad_output(const Conv2dGradOutputArgs<T>& a) {
  if (a.sums != nullptr)
    for (int64_t c = 0; c < a.channels; ++c) a.sums[c] = 0;
  if (a.activated != nullptr) {
    a.grad != nullptr ? grad_output_rows<T, true, true>(a) : grad_output_rows<T, true, false>(a);
  } else {
    a.grad != nullptr ? grad_output_rows<T, false, true>(a) : grad_output_rows<T, false, false>(a);
  }
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
