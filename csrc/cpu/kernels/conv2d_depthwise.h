// Depthwise convolution: lanes are channels, so nothing is shared between lanes and no packing is needed.
// Included once per instruction set.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// The taps [begin, end) of one dimension for which origin + tap * dilation lies within [0, size).
inline void valid_taps(int64_t origin, int64_t dilation, int64_t kernel, int64_t size, int64_t* begin, int64_t* end) {
  *begin = origin >= 0 ? 0 : (-origin + dilation - 1) / dilation;
  *end = origin >= size ? 0 : (size - origin + dilation - 1) / dilation;
  if (*end > kernel) *end = kernel;
}

template <typename T>
void conv2d_depthwise(const Conv2dDepthwiseArgs<T>& a) {
  using V = Vec<T>;
  for (int64_t row = a.row_begin; row < a.row_end; ++row) {
    const int64_t n = row / a.out_h, oh = row % a.out_h;
    const int64_t h0 = oh * a.stride_h - a.pad_h;
    int64_t kh_begin, kh_end, kw_begin, kw_end;
    valid_taps(h0, a.dilation_h, a.kernel_h, a.in_h, &kh_begin, &kh_end);
    const T* image = a.input + n * a.in_h * a.in_w * a.channels;
    for (int64_t ow = 0; ow < a.out_w; ++ow) {
      const int64_t w0 = ow * a.stride_w - a.pad_w;
      valid_taps(w0, a.dilation_w, a.kernel_w, a.in_w, &kw_begin, &kw_end);
      T* out = a.output + (row * a.out_w + ow) * a.channels;
      for (int64_t c = 0; c < a.channels; c += V::kWidth) {
        const int lanes = static_cast<int>(a.channels - c < V::kWidth ? a.channels - c : V::kWidth);
        typename V::Reg acc = a.bias != nullptr ? V::load_first(a.bias + c, lanes) : V::zero();
        for (int64_t kh = kh_begin; kh < kh_end; ++kh) {
          const T* in = image + ((h0 + kh * a.dilation_h) * a.in_w + w0) * a.channels + c;
          const T* w = a.weight + kh * a.kernel_w * a.channels + c;
          for (int64_t kw = kw_begin; kw < kw_end; ++kw) {
            const T* x = in + kw * a.dilation_w * a.channels;
            const T* y = w + kw * a.channels;
            acc = lanes == V::kWidth ? V::fmadd(V::load(x), V::load(y), acc)
                                     : V::fmadd(V::load_first(x, lanes), V::load_first(y, lanes), acc);
          }
        }
        if (a.relu) acc = V::relu(acc);
        V::store_first(out + c, acc, lanes);
      }
    }
  }
}

// `input` is the output's gradient [n, out_h, out_w, channels], `output` the input's [n, in_h, in_w, channels];
// the sizes keep the forward pass's names.
template <typename T>
void conv2d_depthwise_grad_input(const Conv2dDepthwiseArgs<T>& a) {
  using V = Vec<T>;
  for (int64_t row = a.row_begin; row < a.row_end; ++row) {
    const int64_t n = row / a.in_h, ih = row % a.in_h;
    const T* image = a.input + n * a.out_h * a.out_w * a.channels;
    for (int64_t iw = 0; iw < a.in_w; ++iw) {
      T* out = a.output + (row * a.in_w + iw) * a.channels;
      for (int64_t c = 0; c < a.channels; c += V::kWidth) {
        const int lanes = static_cast<int>(a.channels - c < V::kWidth ? a.channels - c : V::kWidth);
        typename V::Reg acc = V::zero();
        for (int64_t kh = 0; kh < a.kernel_h; ++kh) {
          const int64_t h = ih + a.pad_h - kh * a.dilation_h;
          if (h < 0 || h % a.stride_h != 0 || h / a.stride_h >= a.out_h) continue;
          for (int64_t kw = 0; kw < a.kernel_w; ++kw) {
            const int64_t w = iw + a.pad_w - kw * a.dilation_w;
            if (w < 0 || w % a.stride_w != 0 || w / a.stride_w >= a.out_w) continue;
            const T* g = image + ((h / a.stride_h) * a.out_w + w / a.stride_w) * a.channels + c;
            const T* y = a.weight + (kh * a.kernel_w + kw) * a.channels + c;
            acc = V::fmadd(V::load_first(g, lanes), V::load_first(y, lanes), acc);
          }
        }
        V::store_first(out + c, acc, lanes);
      }
    }
  }
}

template <typename T>
void conv2d_depthwise_grad_weight(const Conv2dDepthwiseGradWeightArgs<T>& a) {
  using V = Vec<T>;
  for (int64_t c = a.channel_begin; c < a.channel_end; c += V::kWidth) {
    const int lanes = static_cast<int>(a.channel_end - c < V::kWidth ? a.channel_end - c : V::kWidth);
    for (int64_t kh = 0; kh < a.kernel_h; ++kh)
      for (int64_t kw = 0; kw < a.kernel_w; ++kw) {
        typename V::Reg total = V::zero();
        for (int64_t n = 0; n < a.batch; ++n)
          for (int64_t oh = 0; oh < a.out_h; ++oh) {
            const int64_t ih = oh * a.stride_h - a.pad_h + kh * a.dilation_h;
            if (ih < 0 || ih >= a.in_h) continue;
            const T* in = a.input + (n * a.in_h + ih) * a.in_w * a.channels + c;
            const T* grad = a.grad_output + (n * a.out_h + oh) * a.out_w * a.channels + c;
            typename V::Reg acc = V::zero();
            for (int64_t ow = 0; ow < a.out_w; ++ow) {
              const int64_t iw = ow * a.stride_w - a.pad_w + kw * a.dilation_w;
              if (iw < 0 || iw >= a.in_w) continue;
              acc = V::fmadd(V::load_first(grad + ow * a.channels, lanes), V::load_first(in + iw * a.channels, lanes),
                             acc);
            }
            total = V::add(total, acc);
          }
        V::store_first(a.grad_weight + (kh * a.kernel_w + kw) * a.channels + c, total, lanes);
      }
  }
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
