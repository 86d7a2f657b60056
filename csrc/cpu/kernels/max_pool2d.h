// Max pooling. The first maximum of a window wins, and a NaN over all before it. Forward optionally says which tap won;
// the gradient gathers, at each input pixel, from the windows over it, so nothing is accumulated in memory.
// Included by pool2d.h.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

template <typename T>
inline void store_offsets(uint8_t* p, typename Vec<T>::Reg a, int lanes) {
  Vec<T>::store_u8(p, a, lanes);
}
template <typename T>
inline void store_offsets(int32_t* p, typename Vec<T>::Reg a, int lanes) {
  Vec<T>::store_i32(p, a, lanes);
}
template <typename T>
inline typename Vec<T>::Reg load_offsets(const uint8_t* p, int lanes) {
  return Vec<T>::load_u8(p, lanes);
}
template <typename T>
inline typename Vec<T>::Reg load_offsets(const int32_t* p, int lanes) {
  return Vec<T>::load_i32(p, lanes);
}

// With kTracked the winning taps go to `offsets`.
template <bool kTracked, typename T, typename Offset>
void max_pool2d_rows(const MaxPool2dArgs<T> a, Offset* offsets) {
  using V = Vec<T>;
  const int64_t step_h = a.dilation_h * a.in_w * a.in_pitch, step_w = a.dilation_w * a.in_pitch;
  for (int64_t row = a.row_begin; row < a.row_end; ++row) {
    const PoolWindow rows = a.rows[row % a.out_h];
    const T* image_row = a.input + (row / a.out_h * a.in_h + rows.begin) * a.in_w * a.in_pitch;
    for (int64_t ow = 0; ow < a.out_w; ++ow) {
      const PoolWindow cols = a.cols[ow];
      const T* window = image_row + cols.begin * a.in_pitch;
      const auto first_tap = static_cast<Compute<T>>(rows.tap * a.kernel_w + cols.tap);
      const int64_t pixel = row * a.out_w + ow;
      with_shape(rows, cols, [&](auto shape) FASTCNN_INLINE {
        over_channels<T>(a.channels, [&](int64_t c, int lanes, auto block) FASTCNN_INLINE {
          constexpr int kVectors = decltype(block)::kVectors;
          typename V::Reg best[kVectors], winner[kVectors];
          for (int v = 0; v < kVectors; ++v) {
            best[v] = V::broadcast(-__builtin_inf());
            winner[v] = V::broadcast(first_tap);
          }
          for (int64_t i = 0; i < shape.rows(); ++i) {
            const T* p = window + i * step_h + c;
            typename V::Reg tap = V::broadcast(first_tap + static_cast<Compute<T>>(i * a.kernel_w));
            for (int64_t j = 0; j < shape.cols(); ++j, p += step_w) {
              for (int v = 0; v < kVectors; ++v) {
                const typename V::Reg x = block.load(p, v, lanes);
                if constexpr (kVectors > 1) __builtin_prefetch(p + 2 * a.next_window + v * V::kWidth, 0, 2);
                const typename V::Mask wins = V::greater_or_nan(x, best[v]);
                best[v] = V::select(wins, x, best[v]);
                if constexpr (kTracked) winner[v] = V::select(wins, tap, winner[v]);
              }
              if constexpr (kTracked) tap = V::add(tap, V::broadcast(1));
            }
          }
          for (int v = 0; v < kVectors; ++v) {
            block.store(a.output + pixel * a.out_pitch + c, best[v], v, lanes);
            if constexpr (kTracked)
              store_offsets<T>(offsets + pixel * a.channels + c + v * V::kWidth, winner[v], lanes);
          }
        });
      });
    }
  }
}

template <typename T>
void max_pool2d(const MaxPool2dArgs<T>& a) {
  if (a.offsets8 != nullptr) {
    max_pool2d_rows<true>(a, a.offsets8);
  } else if (a.offsets32 != nullptr) {
    max_pool2d_rows<true>(a, a.offsets32);
  } else {
    max_pool2d_rows<false>(a, a.offsets8);
  }
}

// Row `row` of the gradient: each pixel gathers from the windows over it.
template <typename T, typename Offset>
void max_pool2d_gather_row(const MaxPool2dBackwardArgs<T>& args, const Offset* offsets, int64_t row) {
  using V = Vec<T>;
  const MaxPool2dBackwardArgs<T> a = args;
  const int64_t n = row / a.in_h, ih = row % a.in_h;
  const PoolHit* row_hit = a.rows.hits + a.rows.starts[ih];
  const PoolHit* row_hit_end = a.rows.hits + a.rows.starts[ih + 1];
  const int64_t image = n * a.out_h * a.out_w * a.channels;
  for (int64_t iw = 0; iw < a.in_w; ++iw) {
    const PoolHit* col_hit = a.cols.hits + a.cols.starts[iw];
    const PoolHit* col_hit_end = a.cols.hits + a.cols.starts[iw + 1];
    T* grad_input = a.grad_input + (row * a.in_w + iw) * a.channels;
    over_channels<T>(a.channels, [&](int64_t c, int lanes, auto block) FASTCNN_INLINE {
      constexpr int kVectors = decltype(block)::kVectors;
      typename V::Reg sum[kVectors];
      for (int v = 0; v < kVectors; ++v) sum[v] = V::zero();
      for (const PoolHit* h = row_hit; h != row_hit_end; ++h)
        for (const PoolHit* w = col_hit; w != col_hit_end; ++w) {
          const int64_t from = image + (h->window * a.out_w + w->window) * a.channels + c;
          const typename V::Reg tap = V::broadcast(static_cast<Compute<T>>(h->tap * a.kernel_w + w->tap));
          for (int v = 0; v < kVectors; ++v) {
            const typename V::Mask here = V::equal(load_offsets<T>(offsets + from + v * V::kWidth, lanes), tap);
            const typename V::Reg grad = block.load(a.grad_output + from, v, lanes);
            sum[v] = V::add(sum[v], V::select(here, grad, V::zero()));
          }
        }
      for (int v = 0; v < kVectors; ++v) block.store(grad_input + c, sum[v], v, lanes);
    });
  }
}

template <typename T>
void max_pool2d_backward(const MaxPool2dBackwardArgs<T>& a) {
  for (int64_t row = a.row_begin; row < a.row_end; ++row) {
    if (a.offsets8 != nullptr) {
      max_pool2d_gather_row(a, a.offsets8, row);
    } else {
      max_pool2d_gather_row(a, a.offsets32, row);
    }
  }
}

template <typename T, typename Offset>
void max_pool2d_disjoint_rows(const Pool2dDisjointArgs<T> a, const Offset* offsets) {
  using V = Vec<T>;
  over_disjoint_windows(a, [&](PoolWindow rows, PoolWindow cols, int64_t pixel, T* first) FASTCNN_INLINE {
    const auto first_tap = static_cast<Compute<T>>(rows.tap * a.kernel_w + cols.tap);
    with_shape(rows, cols, [&](auto shape) FASTCNN_INLINE {
      over_channels<T>(a.channels, [&](int64_t c, int lanes, auto block) FASTCNN_INLINE {
        constexpr int kVectors = decltype(block)::kVectors;
        const int64_t from = pixel * a.channels + c;
        typename V::Reg winner[kVectors], grad[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          winner[v] = load_offsets<T>(offsets + from + v * V::kWidth, lanes);
          grad[v] = block.load(a.grad_output + from, v, lanes);
        }
        for (int64_t i = 0; i < shape.rows(); ++i) {
          T* p = first + i * a.in_w * a.channels + c;
          typename V::Reg tap = V::broadcast(first_tap + static_cast<Compute<T>>(i * a.kernel_w));
          for (int64_t j = 0; j < shape.cols(); ++j, p += a.channels) {
            for (int v = 0; v < kVectors; ++v)
              block.store(p, V::select(V::equal(winner[v], tap), grad[v], V::zero()), v, lanes);
            tap = V::add(tap, V::broadcast(1));
          }
        }
      });
    });
  });
}

// The same where no pixel lies under two windows: each window writes its own pixels.
template <typename T>
void max_pool2d_backward_disjoint(const Pool2dDisjointArgs<T>& a) {
  if (a.offsets8 != nullptr) {
    max_pool2d_disjoint_rows(a, a.offsets8);
  } else {
    max_pool2d_disjoint_rows(a, a.offsets32);
  }
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
