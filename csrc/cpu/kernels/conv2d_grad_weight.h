// Gradient of the weight: lanes are (kernel column, input channel), neighbours in NHWC, and broadcasts are output
// channels, so the result comes out in the order of channels_last weights. Included once per instruction set. T is the
// type of what an element holds: pairs of bfloat16 are as wide as what they are computed in.

namespace fastcnn::cpu::FASTCNN_ISA {
namespace {

// Pixels in a chain of additions: longer sums are cut, as rounding errors grow with the chain. So they stay below twice
// those of oneDNN, which cuts its own; the additions onto the gradient cost too little to measure (EPYC 9004).
inline int64_t chain_pixels(int64_t pixels) {
  const int64_t half = (pixels + 1) / 2;
  return half < 32 ? 32 : half > 128 ? 128 : half;
}

template <typename T, int Rows, int Vectors>
void conv2d_grad_weight_chain(const Conv2dGradWeightArgs<Compute<T>>& a, int64_t begin, int64_t end) {
  using V = Vec<T>;
  using Reg = typename V::Reg;
  constexpr int kWidth = V::kWidth;

  // 1. Fetch the gradient's lines, which are needed at the end.
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v)
      __builtin_prefetch(a.grad_weight + m * a.row_stride + v * kWidth, /*for writing=*/1);

  // 2. Sum over the pixels in registers.
  Reg acc[Rows][Vectors];
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[m][v] = V::zero();
  for (const GradWeightPixel *p = a.pixels + begin, *last = a.pixels + end; p < last; ++p) {
    const Compute<T>* grad = a.grad_panel + p->grad * a.grad_stride;
    const Compute<T>* in = a.input + p->input;
    const Compute<T>* ahead = a.input + p[kGradWeightAhead].input;
    __builtin_prefetch(grad + kGradWeightAhead * a.grad_stride);
    Reg x[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      __builtin_prefetch(ahead + v * kWidth);
      x[v] = V::load(in + v * kWidth);
    }
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      const Reg g = V::broadcast(grad[m]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) acc[m][v] = V::dot(g, x[v], acc[m][v]);
    }
  }

  // 3. Add onto the gradient, or begin it.
  const bool adds = a.adds || begin > 0;
  const int last = static_cast<int>(a.lanes - (Vectors - 1) * kWidth);
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
    if (m >= a.valid_rows) break;
    Compute<T>* out = a.grad_weight + m * a.row_stride;
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const bool whole = v < Vectors - 1 || last == kWidth;
      Reg sum = acc[m][v];
      if (adds) sum = V::add(whole ? V::load(out + v * kWidth) : V::load_first(out + v * kWidth, last), sum);
      if (whole) {
        V::store(out + v * kWidth, sum);
      } else {
        V::store_first(out + v * kWidth, sum, last);
      }
    }
  }
}

// At least one chain, which gives zeros where no pixel counts.
template <typename T, int Rows, int Vectors>
void conv2d_grad_weight_tile(const Conv2dGradWeightArgs<Compute<T>>& a) {
  const int64_t chain = chain_pixels(a.num_pixels);
  int64_t begin = 0;
  do {
    const int64_t end = begin + chain < a.num_pixels ? begin + chain : a.num_pixels;
    conv2d_grad_weight_chain<T, Rows, Vectors>(a, begin, end);
    begin = end;
  } while (begin < a.num_pixels);
}

// The widest panel that keeps Rows * Vectors accumulators within the registers is rows_for(Vectors).
template <int Rows>
constexpr int max_vectors_for() {
  int vectors = kMaxVectors;
  while (vectors > 1 && rows_for(vectors) < Rows) --vectors;
  return vectors;
}

template <typename T, int Rows>
void conv2d_grad_weight_rows(const Conv2dGradWeightArgs<Compute<T>>& a) {
  with_count<max_vectors_for<Rows>()>(a.vectors, [&]<int Vectors>() { conv2d_grad_weight_tile<T, Rows, Vectors>(a); });
}

template <typename T>
void conv2d_grad_weight(const Conv2dGradWeightArgs<Compute<T>>& a) {
  switch (a.rows) {
    case 4:
      return conv2d_grad_weight_rows<T, 4>(a);
    case 5:
      return conv2d_grad_weight_rows<T, 5>(a);
    case 6:
      return conv2d_grad_weight_rows<T, 6>(a);
    case 8:
      return conv2d_grad_weight_rows<T, 8>(a);
    case 10:
      return conv2d_grad_weight_rows<T, 10>(a);
  }
}

template <typename T, int Rows, int Vectors>
void conv2d_grad_weight_taps_chain(const Conv2dGradWeightTapsArgs<T>& a, int64_t row, int64_t begin, int64_t end) {
  using V = Vec<T>;
  using Reg = typename V::Reg;
  constexpr int kWidth = V::kWidth;
  const int last = static_cast<int>(a.lanes - (Vectors - 1) * kWidth);

  // 1. Sum over the pixels in registers.
  Reg acc[Rows][Vectors];
  const Compute<T>* in[Rows];
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
    in[m] = a.input + a.row_offsets[row + m];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[m][v] = V::zero();
  }
  const T* grad = a.grad_output + begin * a.grad_stride;
  for (int64_t p = begin; p < end; ++p, grad += a.grad_stride) {
    const int64_t offset = a.input_offsets[p];
    Reg g[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      __builtin_prefetch(grad + kGradWeightAhead * a.grad_stride + v * kWidth);
      g[v] = v < Vectors - 1 || last == kWidth ? V::load(grad + v * kWidth) : V::load_first(grad + v * kWidth, last);
    }
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      const Reg x = V::broadcast(in[m][offset]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) acc[m][v] = V::fmadd(x, g[v], acc[m][v]);
    }
  }

  // 2. Add onto the gradient.
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
    Compute<T>* out = a.transposed + (row + m) * a.row_stride;
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const int n = v < Vectors - 1 ? kWidth : last;
      V::store_first(out + v * kWidth, V::add(V::load_first(out + v * kWidth, n), acc[m][v]), n);
    }
  }
}

// Chain by chain, so that the output's gradient stays in the first-level cache while the tiles pass.
template <typename T>
void conv2d_grad_weight_taps(const Conv2dGradWeightTapsArgs<T>& a) {
  const int64_t chain = chain_pixels(a.pixels);
  with_count<kMaxVectors>(a.vectors, [&]<int Vectors>() {
    for (int64_t begin = 0; begin < a.pixels; begin += chain) {
      const int64_t end = begin + chain < a.pixels ? begin + chain : a.pixels;
      over_tiles<rows_for(Vectors)>(
          a.rows, [&]<int Rows>(int64_t row) { conv2d_grad_weight_taps_chain<T, Rows, Vectors>(a, row, begin, end); });
    }
  });
}

template <typename T>
void conv2d_add_parts(const Conv2dAddPartsArgs<T>& a) {
  using V = Vec<T>;
  int64_t i = 0;
  for (; i + V::kWidth <= a.size; i += V::kWidth) {
    typename V::Reg sum = V::load(a.parts + i);
    for (int64_t part = 1; part < a.count; ++part) sum = V::add(sum, V::load(a.parts + part * a.part_stride + i));
    V::store(a.sums + i, sum);
  }
  for (; i < a.size; ++i) {
    T sum = a.parts[i];
    for (int64_t part = 1; part < a.count; ++part) sum += a.parts[part * a.part_stride + i];
    a.sums[i] = sum;
  }
}

}  // namespace
}  // namespace fastcnn::cpu::FASTCNN_ISA
