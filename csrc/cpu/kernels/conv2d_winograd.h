// Winograd's minimal filtering (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015) as Toom-Cook
// interpolation: a kernel and a tile's outputs are polynomials, evaluated at a family of points. The matrix products
// between the transforms are those of conv2d_direct.h and conv2d_grad_weight.h. Included once per instruction set.

// The transforms live in registers only where every part of them is inlined.
#define FASTCNN_INLINE inline __attribute__((always_inline))

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// Points 0, 1, -1 and infinity: F(2, 3).
struct FourPoints {
  static constexpr int kPoints = 4;
  static constexpr double kScale[kPoints] = {1, 0.5, 0.5, 1};

  // B^T x.
  template <typename V>
  static FASTCNN_INLINE void input(const typename V::Reg* x, typename V::Reg* v) {
    v[0] = V::sub(x[0], x[2]);
    v[1] = V::add(x[1], x[2]);
    v[2] = V::sub(x[2], x[1]);
    v[3] = V::sub(x[3], x[1]);
  }
  // What `coefficients` n and up contribute at the points that are neither 0 nor 1 nor -1 nor infinity: there are none.
  template <typename V, int N>
  static FASTCNN_INLINE void evaluate_others(const typename V::Reg*, typename V::Reg*) {}
  template <typename V, int N>
  static FASTCNN_INLINE void combine_others(const typename V::Reg*, typename V::Reg*) {}
};

// Points 0, 1, -1, 1/2, -2 and infinity: F(4, 3) and F(2, 5). These points give a third of the error that 0, 1, -1, 2,
// -2 give (Alam et al., Winograd Convolution for Deep Neural Networks: Efficient Point Selection, 2022).
struct SixPoints {
  static constexpr int kPoints = 6;
  static constexpr double kScale[kPoints] = {1, 1.0 / 3, -1.0 / 3, -16.0 / 15, 1.0 / 15, 1};

  template <typename V>
  static FASTCNN_INLINE void input(const typename V::Reg* x, typename V::Reg* v) {
    using Reg = typename V::Reg;
    const Reg k = V::broadcast(1.5);
    const Reg even = V::sub(x[4], x[2]), odd = V::sub(x[3], x[1]);
    v[0] = V::fmadd(k, odd, V::add(V::sub(x[0], x[2]), even));
    v[1] = V::fmadd(k, V::add(x[2], x[3]), V::add(even, odd));
    v[2] = V::fmadd(k, V::sub(x[3], x[2]), V::sub(even, odd));
    v[3] = V::fmadd(V::broadcast(2), odd, even);
    v[4] = V::fmadd(V::broadcast(-0.5), odd, even);
    v[5] = V::fmadd(k, even, V::sub(V::sub(x[5], x[3]), odd));
  }
  template <typename V, int N>
  static FASTCNN_INLINE void evaluate_others(const typename V::Reg* y, typename V::Reg* v) {
    v[3] = v[4] = y[N - 1];
#pragma GCC unroll 4
    for (int j = N - 2; j >= 0; --j) {
      v[3] = V::fmadd(V::broadcast(0.5), v[3], y[j]);
      v[4] = V::fmadd(V::broadcast(-2), v[4], y[j]);
    }
  }
  template <typename V, int N>
  static FASTCNN_INLINE void combine_others(const typename V::Reg* m, typename V::Reg* y) {
    constexpr double kHalf[5] = {1, 0.5, 0.25, 0.125, 0.0625}, kTwo[5] = {1, -2, 4, -8, 16};
#pragma GCC unroll 5
    for (int j = 0; j < N; ++j) {
      y[j] = V::fmadd(V::broadcast(kHalf[j]), m[3], y[j]);
      y[j] = V::fmadd(V::broadcast(kTwo[j]), m[4], y[j]);
    }
  }
};

// The values at the points of the polynomial with coefficients y[0 .. N).
template <typename Points, typename V, int N>
FASTCNN_INLINE void winograd_evaluate(const typename V::Reg* y, typename V::Reg* v) {
  using Reg = typename V::Reg;
  Reg even = y[0], odd = y[1];
#pragma GCC unroll 3
  for (int j = 2; j < N; ++j) (j % 2 == 0 ? even : odd) = V::add(j % 2 == 0 ? even : odd, y[j]);
  v[0] = y[0];
  v[1] = V::add(even, odd);
  v[2] = V::sub(even, odd);
  Points::template evaluate_others<V, N>(y, v);
  v[Points::kPoints - 1] = y[N - 1];
}

// The transpose of winograd_evaluate.
template <typename Points, typename V, int N>
FASTCNN_INLINE void winograd_combine(const typename V::Reg* m, typename V::Reg* y) {
  using Reg = typename V::Reg;
  const Reg sum = V::add(m[1], m[2]), difference = V::sub(m[1], m[2]);
#pragma GCC unroll 5
  for (int j = 0; j < N; ++j) y[j] = j % 2 == 0 ? sum : difference;
  y[0] = V::add(y[0], m[0]);
  Points::template combine_others<V, N>(m, y);
  y[N - 1] = V::add(y[N - 1], m[Points::kPoints - 1]);
}

template <typename Points, typename V>
FASTCNN_INLINE void winograd_scale(typename V::Reg* v) {
#pragma GCC unroll 6
  for (int i = 0; i < Points::kPoints; ++i)
    if (Points::kScale[i] != 1) v[i] = V::mul(V::broadcast(Points::kScale[i]), v[i]);
}

// The one-dimensional transforms: `kIn` registers become `kOut`.
template <typename Points, int Kernel>
struct InputTransform {
  static constexpr int kIn = Points::kPoints, kOut = Points::kPoints;
  template <typename V>
  static FASTCNN_INLINE void apply(const typename V::Reg* x, typename V::Reg* v) {
    Points::template input<V>(x, v);
  }
};
template <typename Points, int Kernel>
struct GradOutputTransform {
  static constexpr int kIn = Points::kPoints - Kernel + 1, kOut = Points::kPoints;
  template <typename V>
  static FASTCNN_INLINE void apply(const typename V::Reg* y, typename V::Reg* v) {
    winograd_evaluate<Points, V, kIn>(y, v);
  }
};
template <typename Points, int Kernel>
struct WeightTransform {
  static constexpr int kIn = Kernel, kOut = Points::kPoints;
  template <typename V>
  static FASTCNN_INLINE void apply(const typename V::Reg* g, typename V::Reg* u) {
    winograd_evaluate<Points, V, kIn>(g, u);
    winograd_scale<Points, V>(u);
  }
};
template <typename Points, int Kernel>
struct OutputTransform {
  static constexpr int kIn = Points::kPoints, kOut = Points::kPoints - Kernel + 1;
  template <typename V>
  static FASTCNN_INLINE void apply(const typename V::Reg* m, typename V::Reg* y) {
    winograd_combine<Points, V, kOut>(m, y);
  }
};
template <typename Points, int Kernel>
struct GradWeightTransform {
  static constexpr int kIn = Points::kPoints, kOut = Kernel;
  template <typename V>
  static FASTCNN_INLINE void apply(typename V::Reg* m, typename V::Reg* g) {
    winograd_scale<Points, V>(m);
    winograd_combine<Points, V, kOut>(m, g);
  }
};

// The transform along both dimensions: `load(i, j)` gives an element's register, `store(i, j, r)` takes a result's.
template <typename V, typename Transform, typename Load, typename Store>
FASTCNN_INLINE void winograd_transform(const Load& load, const Store& store) {
  using Reg = typename V::Reg;
  constexpr int kIn = Transform::kIn, kOut = Transform::kOut;
  Reg rows[kOut][kIn];
#pragma GCC unroll 6
  for (int j = 0; j < kIn; ++j) {
    Reg in[kIn], out[kOut];
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) in[i] = load(i, j);
    Transform::template apply<V>(in, out);
#pragma GCC unroll 6
    for (int i = 0; i < kOut; ++i) rows[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kOut; ++i) {
    Reg out[kOut];
    Transform::template apply<V>(rows[i], out);
#pragma GCC unroll 6
    for (int j = 0; j < kOut; ++j) store(i, j, out[j]);
  }
}

// Calls run<Points, Kernel>() for the sizes that there are transforms for.
template <typename Run>
void winograd_dispatch(int points, int kernel, const Run& run) {
  if (points == 4) {
    run.template operator()<FourPoints, 3>();
  } else if (kernel == 3) {
    run.template operator()<SixPoints, 3>();
  } else {
    run.template operator()<SixPoints, 5>();
  }
}

// Where the elements of a tile's window are; those outside the image are read from a row of zeros.
template <typename T, int Size, int Outputs>
void winograd_window(const Conv2dWinogradInputArgs<T>& a, int64_t tile, const T* (&elements)[Size][Size]) {
  const int64_t in_image = tile % (a.tiles.tiles_h * a.tiles.tiles_w);
  const int64_t h0 = in_image / a.tiles.tiles_w * Outputs + a.origin_h;
  const int64_t w0 = in_image % a.tiles.tiles_w * Outputs + a.origin_w;
  const T* image = a.image + tile / (a.tiles.tiles_h * a.tiles.tiles_w) * a.stride_n;
  for (int i = 0; i < Size; ++i) {
    const int64_t h = h0 + i;
    const bool row_inside = h >= 0 && h < a.height;
    const T* row = image + h * a.stride_h + w0 * a.stride_w;
    for (int j = 0; j < Size; ++j)
      elements[i][j] = row_inside && w0 + j >= 0 && w0 + j < a.width ? row + j * a.stride_w : a.zeros;
  }
}

// `Transform` over the windows of tiles. A window's rows lie far apart, so the next window is prefetched meanwhile.
template <typename T, typename Transform, int Outputs>
void winograd_windows(const Conv2dWinogradInputArgs<T>& a) {
  using V = Vec<T>;
  using Reg = typename V::Reg;
  constexpr int kIn = Transform::kIn, kOut = Transform::kOut;
  const T* elements[2][kIn][kIn];
  winograd_window<T, kIn, Outputs>(a, a.tiles.first, elements[0]);
  for (int64_t t = 0; t < a.tiles.count; ++t) {
    const auto& window = elements[t % 2];
    const auto& next = elements[t + 1 < a.tiles.count ? (t + 1) % 2 : t % 2];
    if (t + 1 < a.tiles.count) winograd_window<T, kIn, Outputs>(a, a.tiles.first + t + 1, elements[(t + 1) % 2]);
    Compute<T>* out = a.transformed + t * a.row_stride;
    int64_t c = 0;
    for (; c + V::kWidth <= a.depth; c += V::kWidth)
      winograd_transform<V, Transform>(
          [&](int i, int j) {
            __builtin_prefetch(next[i][j] + c);
            return V::load(window[i][j] + c);
          },
          [&](int i, int j, Reg r) { V::store(out + (i * kOut + j) * a.plane_stride + c, r); });
    if (const int rest = static_cast<int>(a.depth - c); rest > 0)
      winograd_transform<V, Transform>(
          [&](int i, int j) { return V::load_first(window[i][j] + c, rest); },
          [&](int i, int j, Reg r) { V::store(out + (i * kOut + j) * a.plane_stride + c, r); });
  }
}

template <typename T>
void conv2d_winograd_input(const Conv2dWinogradInputArgs<T>& a) {
  winograd_dispatch(a.points, a.kernel, [&]<typename Points, int Kernel>() {
    winograd_windows<T, InputTransform<Points, Kernel>, Points::kPoints - Kernel + 1>(a);
  });
}

template <typename T>
void conv2d_winograd_grad_output(const Conv2dWinogradInputArgs<T>& a) {
  winograd_dispatch(a.points, a.kernel, [&]<typename Points, int Kernel>() {
    winograd_windows<T, GradOutputTransform<Points, Kernel>, Points::kPoints - Kernel + 1>(a);
  });
}

template <typename T>
void conv2d_winograd_weight(const Conv2dWinogradWeightArgs<T>& a) {
  using V = Vec<T>;
  winograd_dispatch(a.points, a.kernel, [&]<typename Points, int Kernel>() {
    for (int64_t e = 0; e < a.count; e += V::kWidth)
      winograd_transform<V, WeightTransform<Points, Kernel>>(
          [&](int i, int j) { return V::load(a.packed + (i * Kernel + j) * a.count + e); },
          [&](int i, int j, typename V::Reg r) {
            V::store(a.transformed + (i * Points::kPoints + j) * a.plane_stride + e, r);
          });
  });
}

template <typename T, typename Points, int Kernel, bool MaxPools>
void winograd_output_tile(const Conv2dWinogradOutputArgs<T>& a, int64_t t) {
  using V = Vec<T>;
  using Reg = typename V::Reg;
  constexpr int kOutputs = Points::kPoints - Kernel + 1, kWindow = MaxPools ? 2 : 1;
  static_assert(kOutputs % kWindow == 0);
  const int64_t tile = a.tiles.first + t, in_image = tile % (a.tiles.tiles_h * a.tiles.tiles_w);
  const int64_t h0 = in_image / a.tiles.tiles_w * kOutputs, w0 = in_image % a.tiles.tiles_w * kOutputs;
  T* corner = a.output + tile / (a.tiles.tiles_h * a.tiles.tiles_w) * a.stride_n + h0 / kWindow * a.stride_h +
              w0 / kWindow * a.stride_w;
  const T* residual_corner = a.residual;
  if (a.residual != nullptr)
    residual_corner += tile / (a.tiles.tiles_h * a.tiles.tiles_w) * a.residual_stride_n + h0 * a.residual_stride_h +
                       w0 * a.residual_stride_w;
  const int64_t rows = a.height - h0 < kOutputs ? a.height - h0 : kOutputs;
  const int64_t cols = a.width - w0 < kOutputs ? a.width - w0 : kOutputs;
  const Rectifier<T> rectify(a.activation);
  for (int64_t lane = 0; lane < a.lanes; lane += V::kWidth) {
    const int n = static_cast<int>(a.lanes - lane < V::kWidth ? a.lanes - lane : V::kWidth);
    const Compute<T>* products = a.products + t * a.row_stride + lane;
    const Reg bias = a.bias == nullptr ? V::zero() : V::load_first(a.bias + lane, n);
    const auto load = [&](int i, int j) {
      const Compute<T>* p = products + (i * Points::kPoints + j) * a.plane_stride;
      __builtin_prefetch(p + a.row_stride);
      return V::load(p);
    };
    const auto finish = [&](int i, int j, Reg r) {
      r = V::add(r, bias);
      if (a.residual != nullptr)
        r = V::add(r, V::load_first(residual_corner + i * a.residual_stride_h + j * a.residual_stride_w + lane, n));
      return rectify(r);
    };
    T* out = corner + lane;
    if constexpr (MaxPools) {
      Reg best[kOutputs / 2];
      winograd_transform<V, OutputTransform<Points, Kernel>>(load, [&](int i, int j, Reg r) {
        r = finish(i, j, r);
        if (i % 2 == 0 && j % 2 == 0) {
          best[j / 2] = r;
        } else {
          best[j / 2] = V::select(V::greater_or_nan(r, best[j / 2]), r, best[j / 2]);
        }
        if (i % 2 == 1 && j % 2 == 1 && i < rows && j < cols)
          V::store_first(out + i / 2 * a.stride_h + j / 2 * a.stride_w, best[j / 2], n);
      });
    } else if (n == V::kWidth && rows == kOutputs && cols == kOutputs) {
      winograd_transform<V, OutputTransform<Points, Kernel>>(
          load, [&](int i, int j, Reg r) { V::store(out + i * a.stride_h + j * a.stride_w, finish(i, j, r)); });
    } else {
      winograd_transform<V, OutputTransform<Points, Kernel>>(load, [&](int i, int j, Reg r) {
        if (i < rows && j < cols) V::store_first(out + i * a.stride_h + j * a.stride_w, finish(i, j, r), n);
      });
    }
  }
  if constexpr (!MaxPools)
    for (int64_t i = 0; i < rows; ++i)
      finish_activation<T>({corner + i * a.stride_h, a.stride_w, cols, a.lanes, a.activation});
}

template <typename T>
void conv2d_winograd_output(const Conv2dWinogradOutputArgs<T>& a) {
  winograd_dispatch(a.points, a.kernel, [&]<typename Points, int Kernel>() {
    if (a.max_pools) {
      for (int64_t t = 0; t < a.tiles.count; ++t) winograd_output_tile<T, Points, Kernel, true>(a, t);
    } else {
      for (int64_t t = 0; t < a.tiles.count; ++t) winograd_output_tile<T, Points, Kernel, false>(a, t);
    }
  });
}

template <typename T>
void conv2d_winograd_grad_weight(const Conv2dWinogradGradWeightArgs<T>& a) {
  using V = Vec<T>;
  winograd_dispatch(a.points, a.kernel, [&]<typename Points, int Kernel>() {
    for (int64_t k = 0; k < a.rows; ++k)
      for (int64_t lane = 0; lane < a.lanes; lane += V::kWidth) {
        const int n = static_cast<int>(a.lanes - lane < V::kWidth ? a.lanes - lane : V::kWidth);
        const T* products = a.products + k * a.row_stride + lane;
        T* out = a.grad_weight + k * Kernel * Kernel * a.lanes + lane;
        winograd_transform<V, GradWeightTransform<Points, Kernel>>(
            [&](int i, int j) { return V::load(products + (i * Points::kPoints + j) * a.plane_stride); },
            [&](int i, int j, typename V::Reg r) { V::store_first(out + (i * Kernel + j) * a.lanes, r, n); });
      }
  });
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA

#undef FASTCNN_INLINE
