// Average pooling, regular and adaptive: windows are tables, so one kernel serves both. A window's rows are summed
// first and then each other, which keeps the chains of additions short. Included by pool2d.h.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// A row of windows of channels that one register holds, for which choosing a block of channels takes longer than the
// work; a function of its own, which leaves it registers enough.
template <typename T>
[[gnu::noinline]] void avg_pool2d_narrow_row(const AvgPool2dArgs<T>& a, PoolWindow rows, const T* image_row,
                                             T* output) {
  using V = Vec<T>;
  const int lanes = static_cast<int>(a.channels);
  const int64_t pitch = a.in_pitch, row_size = a.in_w * pitch, out_pitch = a.out_pitch;
  int64_t divisor = 0;
  bool is_power = false;
  typename V::Reg factor = V::zero();
  for (const PoolWindow *cols = a.cols, *end = cols + a.out_w; cols != end; ++cols, output += out_pitch) {
    if (rows.divisor * cols->divisor != divisor) {
      // By a power of 2 a product is as exact as a division, and takes a quarter of the time.
      divisor = rows.divisor * cols->divisor, is_power = (divisor & (divisor - 1)) == 0;
      const auto number = static_cast<Compute<T>>(divisor);
      factor = V::broadcast(is_power ? 1 / number : number);
    }
    const T* window = image_row + cols->begin * pitch;
    typename V::Reg sum = V::zero();
    with_shape(rows, *cols, [&](auto shape) FASTCNN_INLINE {
      for (int64_t i = 0; i < shape.rows(); ++i) {
        typename V::Reg row_sum = V::zero();
        for (int64_t j = 0; j < shape.cols(); ++j)
          row_sum = V::add(row_sum, V::load_first(window + i * row_size + j * pitch, lanes));
        sum = V::add(sum, row_sum);
      }
    });
    V::store_first(output, is_power ? V::mul(sum, factor) : V::div(sum, factor), lanes);
  }
}

template <typename T>
void avg_pool2d(const AvgPool2dArgs<T>& args) {
  using V = Vec<T>;
  const AvgPool2dArgs<T> a = args;
  for (int64_t row = a.row_begin; row < a.row_end; ++row) {
    const PoolWindow rows = a.rows[row % a.out_h];
    const T* image_row = a.input + (row / a.out_h * a.in_h + rows.begin) * a.in_w * a.in_pitch;
    if (a.channels <= V::kWidth) {
      avg_pool2d_narrow_row(a, rows, image_row, a.output + row * a.out_w * a.out_pitch);
      continue;
    }
    for (int64_t ow = 0; ow < a.out_w; ++ow) {
      const PoolWindow cols = a.cols[ow];
      const T* window = image_row + cols.begin * a.in_pitch;
      T* output = a.output + (row * a.out_w + ow) * a.out_pitch;
      const typename V::Reg divisor = V::broadcast(static_cast<Compute<T>>(rows.divisor * cols.divisor));
      with_shape(rows, cols, [&](auto shape) FASTCNN_INLINE {
        over_channels<T>(a.channels, [&](int64_t c, int lanes, auto block) FASTCNN_INLINE {
          constexpr int kVectors = decltype(block)::kVectors;
          typename V::Reg sum[kVectors];
          for (int v = 0; v < kVectors; ++v) sum[v] = V::zero();
          for (int64_t i = 0; i < shape.rows(); ++i) {
            const T* p = window + i * a.in_w * a.in_pitch + c;
            typename V::Reg row_sum[kVectors];
            for (int v = 0; v < kVectors; ++v) row_sum[v] = V::zero();
            for (int64_t j = 0; j < shape.cols(); ++j, p += a.in_pitch)
              for (int v = 0; v < kVectors; ++v) {
                row_sum[v] = V::add(row_sum[v], block.load(p, v, lanes));
                if constexpr (kVectors > 1) __builtin_prefetch(p + a.next_window + v * V::kWidth);
              }
            for (int v = 0; v < kVectors; ++v) sum[v] = V::add(sum[v], row_sum[v]);
          }
          for (int v = 0; v < kVectors; ++v) block.store(output + c, V::div(sum[v], divisor), v, lanes);
        });
      });
    }
  }
}

// Row `row` of the gradient: each pixel gathers from the windows over it.
template <typename T>
void avg_pool2d_gather_row(const AvgPool2dBackwardArgs<T>& args, int64_t row) {
  using V = Vec<T>;
  const AvgPool2dBackwardArgs<T> a = args;
  const int64_t n = row / a.in_h, ih = row % a.in_h;
  const PoolHit* row_hit = a.rows.hits + a.rows.starts[ih];
  const PoolHit* row_hit_end = a.rows.hits + a.rows.starts[ih + 1];
  const T* image = a.grad_output + n * a.out_h * a.out_w * a.channels;
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
          const T* from = image + (h->window * a.out_w + w->window) * a.channels + c;
          const typename V::Reg divisor = V::broadcast(static_cast<Compute<T>>(h->divisor * w->divisor));
          for (int v = 0; v < kVectors; ++v) sum[v] = V::add(sum[v], V::div(block.load(from, v, lanes), divisor));
        }
      for (int v = 0; v < kVectors; ++v) block.store(grad_input + c, sum[v], v, lanes);
    });
  }
}

template <typename T>
void avg_pool2d_backward(const AvgPool2dBackwardArgs<T>& a) {
  for (int64_t row = a.row_begin; row < a.row_end; ++row) avg_pool2d_gather_row(a, row);
}

// The same where no pixel lies under two windows: each window writes its own pixels.
template <typename T>
void avg_pool2d_backward_disjoint(const Pool2dDisjointArgs<T>& args) {
  using V = Vec<T>;
  const Pool2dDisjointArgs<T> a = args;
  over_disjoint_windows(a, [&](PoolWindow rows, PoolWindow cols, int64_t pixel, T* first) FASTCNN_INLINE {
    const typename V::Reg divisor = V::broadcast(static_cast<Compute<T>>(rows.divisor * cols.divisor));
    with_shape(rows, cols, [&](auto shape) FASTCNN_INLINE {
      over_channels<T>(a.channels, [&](int64_t c, int lanes, auto block) FASTCNN_INLINE {
        constexpr int kVectors = decltype(block)::kVectors;
        typename V::Reg grad[kVectors];
        for (int v = 0; v < kVectors; ++v)
          grad[v] = V::div(block.load(a.grad_output + pixel * a.channels + c, v, lanes), divisor);
        for (int64_t i = 0; i < shape.rows(); ++i) {
          T* p = first + i * a.in_w * a.channels + c;
          for (int64_t j = 0; j < shape.cols(); ++j, p += a.channels)
            for (int v = 0; v < kVectors; ++v) block.store(p, grad[v], v, lanes);
        }
      });
    });
  });
}

template <typename T>
void global_avg_pool2d(const GlobalAvgPool2dArgs<T>& args) {
  const GlobalAvgPool2dArgs<T> a = args;
  using V = Vec<T>;
  const typename V::Reg divisor = V::broadcast(static_cast<Compute<T>>(a.in_h * a.in_w));
  for (int64_t n = a.row_begin; n < a.row_end; ++n) {
    const T* image = a.source + n * a.in_h * a.in_w * a.channels;
    over_channels<T>(a.channels, [&](int64_t c, int lanes, auto block) FASTCNN_INLINE {
      constexpr int kVectors = decltype(block)::kVectors;
      typename V::Reg sum[kVectors];
      for (int v = 0; v < kVectors; ++v) sum[v] = V::zero();
      const T* p = image + c;
      for (int64_t h = 0; h < a.in_h; ++h) {
        typename V::Reg row_sum[kVectors];
        for (int v = 0; v < kVectors; ++v) row_sum[v] = V::zero();
        for (int64_t w = 0; w < a.in_w; ++w, p += a.channels)
          for (int v = 0; v < kVectors; ++v) row_sum[v] = V::add(row_sum[v], block.load(p, v, lanes));
        for (int v = 0; v < kVectors; ++v) sum[v] = V::add(sum[v], row_sum[v]);
      }
      for (int v = 0; v < kVectors; ++v) block.store(a.result + n * a.channels + c, V::div(sum[v], divisor), v, lanes);
    });
  }
}

template <typename T>
void global_avg_pool2d_backward(const GlobalAvgPool2dArgs<T>& args) {
  const GlobalAvgPool2dArgs<T> a = args;
  using V = Vec<T>;
  const int64_t pixels = a.in_h * a.in_w;
  const typename V::Reg divisor = V::broadcast(static_cast<Compute<T>>(pixels));
  for (int64_t n = a.row_begin; n < a.row_end; ++n) {
    over_channels<T>(a.channels, [&](int64_t c, int lanes, auto block) FASTCNN_INLINE {
      constexpr int kVectors = decltype(block)::kVectors;
      typename V::Reg grad[kVectors];
      for (int v = 0; v < kVectors; ++v) grad[v] = V::div(block.load(a.source + n * a.channels + c, v, lanes), divisor);
      T* p = a.result + n * pixels * a.channels + c;
      for (int64_t i = 0; i < pixels; ++i, p += a.channels)
        for (int v = 0; v < kVectors; ++v) block.store(p, grad[v], v, lanes);
    });
  }
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
