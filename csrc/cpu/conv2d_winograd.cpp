// Drivers of Winograd convolution with stride 1: transforms of weights and input, one matrix product for each pair of
// points, and the way back. How tiles and lanes are cut into blocks never changes a result of the forward pass or of
// the input's gradient; the weight gradient is summed block by block, whose number depends on the sizes alone.

#include <algorithm>

#include "conv2d.h"
#include "memory.h"
#include "parallel.h"

namespace fastcnn::cpu {
namespace {

// What a block of tiles holds beside the weights that pass by, in a second-level cache of 1 MB (EPYC 9004).
constexpr int64_t kBlockBytes = 400 * 1024;
constexpr int64_t kMinTiles = 8, kMaxTiles = 96;  // in a block: fewer stream the weights too often
// Tiles in a block of a weight gradient, whose transforms all threads share: as many as fill that many bytes of a
// plane, within bounds. Fewer meet at more barriers and add to the sums more often (32 to 96 tiles at 64 to 256
// channels: 0.84 to 0.97 of the time on two threads, the same on one), more fall out of the second-level caches (512
// channels).
constexpr int64_t kGradPlaneBytes = 128 * 1024, kMinGradTiles = 32, kMaxGradTiles = 96;
// So that the sums that each block adds to stay in the third-level cache, output channels beyond that many bytes of
// sums are taken one part after the other, which transforms the input again: 512 -> 512 of 3x3 at 32 x 3x3 and 8 x 7x7
// take half the time, 384 -> 384 at 32 x 12x12 0.85 of it, and none longer (EPYC 9004, two threads).
constexpr int64_t kSumsBytes = 6 * 1024 * 1024;
constexpr int64_t kPartOutputs = 16;  // a part's output channels are a multiple of it, for whole tiles
constexpr int64_t kDepthPart = 64;    // depth of the weights that are packed and transformed at a time
constexpr int64_t kPad = 16;          // elements between planes, whose distance would else be a power of two and alias
// Transformed weights of more bytes are made and used one group of lanes after the other, with up to kInputBytes of
// transformed input kept meanwhile: each group stays in cache, and no buffer is so large that its pages come in cold.
constexpr int64_t kWeightsBytes = 4 * 1024 * 1024, kInputBytes = 12 * 1024 * 1024;
constexpr int64_t kLaneGroupTiles = 48;  // tiles whose products a thread holds meanwhile
constexpr int64_t kManyTasks = 4;        // for a thread, from where on it does not matter whether one has one more

// Planes of a matrix: rows `row_stride` apart, planes `plane_stride` apart.
template <typename T>
struct Planes {
  T* data;
  int64_t plane_stride, row_stride;
};

// Elements of a row of channels in a plane: whole registers, and the padding.
template <typename T>
int64_t row_elements(const KernelSet<T>& kernel, int64_t channels) {
  return ceil_div(channels, kernel.width) * kernel.width + kPad;
}

template <typename T>
class WinogradRun final : public PreparedConv<T> {
  using Element = Compute<T>;

 public:
  WinogradRun(const GatherConv<T>& p, WinogradSize size)
      : p_(p),
        size_(size),
        kernel_(kernels().of<T>()),
        product_(kernels().of<Element>()),
        options_(at::TensorOptions().dtype(kComputeDtype<T>)),
        blocks_(p.lanes, kernel_.width, kernel_.max_vectors),
        segments_(chained_segments(p.image.depth)),
        zeros_(zeros({p.image.depth}, options_)),
        tiles_h_(ceil_div(p.grid.rows, size.outputs())),
        tiles_w_(ceil_div(p.grid.cols, size.outputs())),
        tiles_(p.image.batch * tiles_h_ * tiles_w_) {
    for (const Tap& t : p.grid.taps) tap_offsets_.push_back(t.weight_offset);
  }

  // All of them, transformed.
  at::Tensor weights() const {
    const at::Tensor weights = empty({size_.planes() * weight_stride(0, blocks_.count)}, options_);
    transform_weights(0, blocks_.count, weights.mutable_data_ptr<Element>());
    return weights;
  }

  void run(const GatherData<T>& data) const override {
    const int64_t weights = size_.planes() * blocks_.padded_lanes() * p_.image.depth;
    if (weights * static_cast<int64_t>(sizeof(Element)) <= kWeightsBytes) {
      run_by_tiles(data);
    } else {
      run_by_lanes(data);
    }
  }

 private:
  // All weights are transformed first; then each thread takes blocks of tiles through all steps.
  void run_by_tiles(const GatherData<T>& data) const {
    const at::Tensor transformed = p_.packed == nullptr ? weights() : at::Tensor();
    const Element* weights_data = p_.packed == nullptr ? transformed.const_data_ptr<Element>() : p_.packed;
    const int64_t threads = num_threads(), row_stride = row_elements(kernel_, std::max(p_.image.depth, p_.lanes));
    const int64_t tile_bytes = size_.planes() * row_stride * static_cast<int64_t>(sizeof(Element));
    int64_t count = ceil_div(tiles_, std::clamp(kBlockBytes / tile_bytes, kMinTiles, kMaxTiles));
    // Every thread gets as many blocks; where tiles are few, the threads share a block's lanes instead, if they can.
    const bool shares_lanes = tiles_ < threads * kMinTiles && blocks_.count % threads == 0;
    if (!shares_lanes) count = std::min(tiles_, ceil_div(count, threads) * threads);
    const int64_t in_block = ceil_div(tiles_, count);
    count = ceil_div(tiles_, in_block);
    const int64_t lane_parts = std::clamp<int64_t>(ceil_div(threads, count), 1, blocks_.count);
    // The products of a plane overwrite the transformed input of the plane before.
    const int64_t plane_stride = in_block * row_stride + kPad, scratch_size = (size_.planes() + 1) * plane_stride;
    const at::Tensor scratch = empty({threads, scratch_size}, options_);
    Element* scratch_data = scratch.mutable_data_ptr<Element>();
    parallel_for(0, count * lane_parts, 1, [&](int64_t begin, int64_t end) {
      Element* buffer = scratch_data + at::get_thread_num() * scratch_size;
      const Planes<Element> products{buffer, plane_stride, row_stride},
          inputs{buffer + plane_stride, plane_stride, row_stride};
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task / lane_parts * in_block, part = task % lane_parts;
        const WinogradTiles block{tiles_h_, tiles_w_, first, std::min(in_block, tiles_ - first)};
        const int64_t first_block = blocks_.count * part / lane_parts;
        const int64_t last_block = blocks_.count * (part + 1) / lane_parts;
        const int64_t lane = blocks_.first_lane(first_block);
        transform_input(data.image, block, inputs);
        multiply(block.count, first_block, last_block, inputs, weights_data + lane * p_.image.depth,
                 weight_stride(0, blocks_.count), products);
        transform_output(data, block, first_block, last_block, products);
      }
    });
  }

  // The input is transformed first, as much as may be kept; then the weights of a group of lanes, and their products.
  // Weights that were transformed before are one group.
  void run_by_lanes(const GatherData<T>& data) const {
    const int64_t threads = num_threads();
    const int64_t in_group = p_.packed == nullptr ? std::min(threads, blocks_.count) : blocks_.count;
    const int64_t input_row = row_elements(kernel_, p_.image.depth),
                  product_row = row_elements(kernel_, kernel_.max_vectors * kernel_.width);
    const int64_t tile_bytes = size_.planes() * input_row * static_cast<int64_t>(sizeof(Element));
    const int64_t kept = std::clamp<int64_t>(kInputBytes / tile_bytes, 1, tiles_);
    int64_t tile_blocks = ceil_div(kept, kLaneGroupTiles);
    // Few tasks, unequally many for each thread: of fewer tiles.
    if (in_group * tile_blocks % threads != 0 && in_group * tile_blocks < kManyTasks * threads)
      tile_blocks = std::min(kept, tile_blocks * threads);
    const int64_t in_block = ceil_div(kept, tile_blocks);
    const int64_t product_plane = in_block * product_row + kPad, scratch_size = size_.planes() * product_plane;
    const at::Tensor input = empty({size_.planes() * (kept * input_row + kPad)}, options_);
    at::Tensor weights;
    if (p_.packed == nullptr)
      weights = empty({size_.planes() * (max_lanes(in_group) * p_.image.depth + kPad)}, options_);
    const Element* weights_data = p_.packed == nullptr ? weights.const_data_ptr<Element>() : p_.packed;
    const at::Tensor scratch = empty({threads, scratch_size}, options_);
    Element* scratch_data = scratch.mutable_data_ptr<Element>();
    const Planes<Element> inputs{input.mutable_data_ptr<Element>(), kept * input_row + kPad, input_row};
    const auto tiles = [&](int64_t begin, int64_t end) {
      return WinogradTiles{tiles_h_, tiles_w_, begin, end - begin};
    };

    for (int64_t first = 0; first < tiles_; first += kept) {
      const int64_t count = std::min(kept, tiles_ - first), blocks = ceil_div(count, in_block);
      parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
        transform_input(data.image, tiles(first + begin, first + end), rows_from(inputs, begin));
      });
      for (int64_t group = 0; group < blocks_.count; group += in_group) {
        const int64_t group_end = std::min(group + in_group, blocks_.count);
        if (p_.packed == nullptr) transform_weights(group, group_end, weights.mutable_data_ptr<Element>());
        parallel_for(0, (group_end - group) * blocks, 1, [&](int64_t begin, int64_t end) {
          const Planes<Element> products{scratch_data + at::get_thread_num() * scratch_size, product_plane,
                                         product_row};
          for (int64_t task = begin; task < end; ++task) {
            const int64_t b = group + task / blocks, t = task % blocks * in_block,
                          t_end = std::min(t + in_block, count);
            const int64_t lane = blocks_.first_lane(b) - blocks_.first_lane(group);
            multiply(t_end - t, b, b + 1, rows_from(inputs, t), weights_data + lane * p_.image.depth,
                     weight_stride(group, group_end), products);
            transform_output(data, tiles(first + t, first + t_end), b, b + 1, products);
          }
        });
      }
    }
  }

  int64_t max_lanes(int64_t blocks) const { return blocks * kernel_.max_vectors * kernel_.width; }
  int64_t weight_stride(int64_t first_block, int64_t last_block) const {
    return (blocks_.first_lane(last_block) - blocks_.first_lane(first_block)) * p_.image.depth + kPad;
  }
  static Planes<Element> rows_from(const Planes<Element>& p, int64_t row) {
    return {p.data + row * p.row_stride, p.plane_stride, p.row_stride};
  }

  // Into planes of [block of lanes][depth][lanes of the block].
  void transform_weights(int64_t first_block, int64_t last_block, Element* weights) const {
    const int64_t taps = static_cast<int64_t>(tap_offsets_.size()), depth = p_.image.depth;
    const int64_t first_lane = blocks_.first_lane(first_block), stride = weight_stride(first_block, last_block);
    const int64_t parts = ceil_div(depth, kDepthPart), packed_size = taps * kDepthPart * max_lanes(1);
    const at::Tensor packed = empty({num_threads(), packed_size}, options_);
    Element* packed_data = packed.mutable_data_ptr<Element>();
    parallel_for(first_block * parts, last_block * parts, 1, [&](int64_t begin, int64_t end) {
      Element* buffer = packed_data + at::get_thread_num() * packed_size;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t block = task / parts, d = task % parts * kDepthPart, lane = blocks_.first_lane(block);
        const int64_t lanes = blocks_.first_lane(block + 1) - lane, part_depth = std::min(kDepthPart, depth - d);
        kernel_.conv2d_pack({p_.weight + lane * p_.lane_stride + d * p_.depth_stride, p_.lane_stride, p_.depth_stride,
                             part_depth, tap_offsets_.data(), taps, std::min(lanes, p_.lanes - lane), lanes, buffer,
                             false});
        kernel_.conv2d_winograd_weight({buffer, part_depth * lanes, size_.points, size_.kernel,
                                        weights + (lane - first_lane) * depth + d * lanes, stride});
      }
    });
  }

  void transform_input(const T* pixels, const WinogradTiles& tiles, const Planes<Element>& transformed) const {
    const ImageView<T>& image = p_.image;
    kernel_.conv2d_winograd_input({pixels, image.stride_n, image.stride_h, image.stride_w, image.height, image.width,
                                   image.depth, p_.grid.min_h(), p_.grid.min_w(), tiles, size_.points, size_.kernel,
                                   data_of<T>(zeros_), transformed.data, transformed.plane_stride,
                                   transformed.row_stride});
  }

  // One matrix product a plane, for the blocks' lanes; `weights` begins with the first block's.
  void multiply(int64_t tiles, int64_t first_block, int64_t last_block, const Planes<Element>& inputs,
                const Element* weights, int64_t weight_stride, const Planes<Element>& products) const {
    std::vector<int64_t> input_offsets(tiles), product_offsets(tiles);
    for (int64_t t = 0; t < tiles; ++t)
      input_offsets[t] = t * inputs.row_stride, product_offsets[t] = t * products.row_stride;
    const int64_t first_lane = blocks_.first_lane(first_block);
    for (int64_t plane = 0; plane < size_.planes(); ++plane)
      for (int64_t b = first_block; b < last_block; ++b) {
        const int64_t lane = blocks_.first_lane(b) - first_lane, lanes = blocks_.first_lane(b + 1) - first_lane - lane;
        const Element* weight = weights + plane * weight_stride + lane * p_.image.depth;
        const Element* next = b + 1 < last_block           ? weight + lanes * p_.image.depth
                              : plane + 1 < size_.planes() ? weights + (plane + 1) * weight_stride
                                                           : nullptr;
        product_.conv2d_direct({inputs.data + plane * inputs.plane_stride, input_offsets.data(),
                                products.data + plane * products.plane_stride + lane, product_offsets.data(), tiles,
                                segments_.data(), static_cast<int64_t>(segments_.size()), weight, nullptr,
                                static_cast<int>(lanes / blocks_.width), lanes, Activation::none, nullptr, nullptr,
                                next});
      }
  }

  void transform_output(const GatherData<T>& data, const WinogradTiles& tiles, int64_t first_block, int64_t last_block,
                        const Planes<Element>& products) const {
    const int64_t lane = blocks_.first_lane(first_block);
    kernel_.conv2d_winograd_output({products.data,
                                    products.plane_stride,
                                    products.row_stride,
                                    tiles,
                                    size_.points,
                                    size_.kernel,
                                    p_.bias != nullptr ? p_.bias + lane : nullptr,
                                    p_.activation,
                                    data.output + lane,
                                    p_.out_stride_n,
                                    p_.out_stride_h,
                                    p_.out_stride_w,
                                    p_.grid.rows,
                                    p_.grid.cols,
                                    std::min(blocks_.first_lane(last_block), p_.lanes) - lane,
                                    data.residual != nullptr ? data.residual + lane : nullptr,
                                    p_.residual_stride_n,
                                    p_.residual_stride_h,
                                    p_.residual_stride_w,
                                    p_.max_pools});
  }

  const GatherConv<T> p_;
  WinogradSize size_;
  const KernelSet<T>& kernel_;
  const KernelSet<Element>& product_;
  at::TensorOptions options_;
  LaneBlocks blocks_;
  std::vector<Conv2dSegment> segments_;
  at::Tensor zeros_;
  int64_t tiles_h_, tiles_w_, tiles_;
  std::vector<int64_t> tap_offsets_;
};

// dW = G^T [sum over tiles of (A dY A^T) * (B^T X B)] G, for one group. A block of tiles is transformed by all threads
// together, and its products are shared out by plane: what a thread adds to stays its own.
template <typename T>
class WinogradGradWeightRun {
  using Element = Compute<T>;

 public:
  WinogradGradWeightRun(const Conv2dGeometry& g, WinogradSize size, const ImageView<T>& input,
                        const ImageView<T>& grad_output, Element* grad_weight)
      : g_(g),
        size_(size),
        kernel_(kernels().of<T>()),
        product_(kernels().of<Element>()),
        input_(input),
        grad_output_(grad_output),
        grad_weight_(grad_weight),
        tile_(choose_grad_weight_tile(kernel_, 1, input.depth, grad_output.depth)),
        lanes_(input.depth, kernel_.width, tile_.vectors) {
    input_stride_ = row_elements(kernel_, input.depth), grad_stride_ = row_elements(kernel_, grad_output.depth);
    sums_stride_ = grad_output.depth * input_stride_ + kPad;
  }

  void run() {
    const int64_t tiles_h = ceil_div(g_.out_h, size_.outputs()), tiles_w = ceil_div(g_.out_w, size_.outputs());
    const int64_t tiles = g_.batch * tiles_h * tiles_w, planes = size_.planes();
    const int64_t tile_bytes = (input_.depth + grad_output_.depth) * int64_t{sizeof(Element)};
    const int64_t most = std::clamp(kGradPlaneBytes / tile_bytes, kMinGradTiles, kMaxGradTiles);
    const int64_t blocks = ceil_div(tiles, most), in_block = ceil_div(tiles, blocks);
    const int64_t input_plane = in_block * input_stride_ + kPad, grad_plane = in_block * grad_stride_ + kPad;
    const auto options = at::TensorOptions().dtype(kComputeDtype<T>);
    const at::Tensor outside = zeros({std::max(input_.depth, grad_output_.depth)}, options);
    at::Tensor transformed = empty({planes * (input_plane + grad_plane)}, options);
    at::Tensor sums = empty({planes * sums_stride_}, options);
    Element* inputs = transformed.mutable_data_ptr<Element>();
    Element* grads = inputs + planes * input_plane;
    Element* sums_data = sums.mutable_data_ptr<Element>();
    const T* zeros_data = data_of<T>(outside);
    std::vector<GradWeightPixel> pixels(in_block + kGradWeightAhead);
    for (int64_t t = 0; t < in_block; ++t) pixels[t] = {t, t * input_stride_};

    for (int64_t first = 0; first < tiles; first += in_block) {
      const int64_t count = std::min(in_block, tiles - first);
      // 1. The transforms, inputs first.
      parallel_for(0, 2 * count, 1, [&](int64_t begin, int64_t end) {
        const auto part = [&](int64_t low, int64_t high) {
          return WinogradTiles{tiles_h, tiles_w, first + low, std::max<int64_t>(0, high - low)};
        };
        const int64_t middle = std::clamp(count, begin, end);
        if (begin < middle)
          kernel_.conv2d_winograd_input({input_.data, input_.stride_n, input_.stride_h, input_.stride_w, input_.height,
                                         input_.width, input_.depth, -g_.pad_h, -g_.pad_w, part(begin, middle),
                                         size_.points, size_.kernel, zeros_data, inputs + begin * input_stride_,
                                         input_plane, input_stride_});
        if (middle < end)
          kernel_.conv2d_winograd_grad_output(
              {grad_output_.data, grad_output_.stride_n, grad_output_.stride_h, grad_output_.stride_w, g_.out_h,
               g_.out_w, grad_output_.depth, 0, 0, part(middle - count, end - count), size_.points, size_.kernel,
               zeros_data, grads + (middle - count) * grad_stride_, grad_plane, grad_stride_});
      });
      // 2. The products.
      parallel_for(0, planes * lanes_.count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t plane = task / lanes_.count, block = task % lanes_.count;
          multiply(block, pixels.data(), count, first > 0, inputs + plane * input_plane, grads + plane * grad_plane,
                   sums_data + plane * sums_stride_);
        }
      });
    }
    // 3. Back from the points to the kernel's elements.
    parallel_for(0, grad_output_.depth, 1, [&](int64_t begin, int64_t end) {
      kernel_.conv2d_winograd_grad_weight({sums_data + begin * input_stride_, sums_stride_, input_stride_, end - begin,
                                           input_.depth, size_.points, size_.kernel,
                                           grad_weight_ + begin * size_.kernel * size_.kernel * input_.depth});
    });
  }

 private:
  void multiply(int64_t block, const GradWeightPixel* tiles, int64_t num_tiles, bool adds, const Element* inputs,
                const Element* grads, Element* sums) const {
    const int64_t lane = lanes_.first_lane(block), lanes = lanes_.first_lane(block + 1) - lane;
    for (int64_t k = 0; k < grad_output_.depth; k += tile_.rows)
      product_.conv2d_grad_weight({grads + k, grad_stride_, inputs + lane, tiles, num_tiles, adds,
                                   sums + k * input_stride_ + lane, input_stride_, tile_.rows,
                                   static_cast<int>(std::min<int64_t>(tile_.rows, grad_output_.depth - k)),
                                   static_cast<int>(lanes / lanes_.width), lanes});
  }

  const Conv2dGeometry& g_;
  WinogradSize size_;
  const KernelSet<T>& kernel_;
  const KernelSet<Element>& product_;
  ImageView<T> input_, grad_output_;
  Element* grad_weight_;
  GradWeightTile tile_;
  LaneBlocks lanes_;
  int64_t input_stride_, grad_stride_, sums_stride_;
};

}  // namespace

template <typename T>
void conv2d_grad_weight_winograd(const Conv2dGeometry& g, WinogradSize size, const at::Tensor& grad_output,
                                 const at::Tensor& input, at::Tensor& grad_weight) {
  for (int64_t group = 0; group < g.groups; ++group) {
    ImageView<T> image = image_view<T>(input), grad = image_view<T>(grad_output);
    image.data += group * g.group_in(), image.depth = g.group_in();
    const int64_t row_bytes =
        size.planes() * row_elements(kernels().of<T>(), image.depth) * int64_t{sizeof(Compute<T>)};
    const int64_t parts = ceil_div(g.group_out() * row_bytes, kSumsBytes);
    const int64_t in_part = ceil_div(ceil_div(g.group_out(), parts), kPartOutputs) * kPartOutputs;
    for (int64_t k = 0; k < g.group_out(); k += in_part) {
      const int64_t first = group * g.group_out() + k;
      ImageView<T> outputs = grad;
      outputs.data += first, outputs.depth = std::min(in_part, g.group_out() - k);
      auto* result = grad_weight.mutable_data_ptr<Compute<T>>() + first * size.kernel * size.kernel * g.group_in();
      WinogradGradWeightRun<T>(g, size, image, outputs, result).run();
    }
  }
}

template <typename T>
void conv2d_winograd(const std::vector<GatherConv<T>>& problems, WinogradSize size) {
  for (const GatherConv<T>& p : problems) WinogradRun<T>(p, size).run({p.image.data, p.output, p.residual});
}

template <typename T>
std::unique_ptr<const PreparedConv<T>> prepare_conv2d_winograd(const GatherConv<T>& problem, WinogradSize size) {
  return std::make_unique<WinogradRun<T>>(problem, size);
}

template <typename T>
at::Tensor conv2d_winograd_weight(const GatherConv<T>& problem, WinogradSize size) {
  return WinogradRun<T>(problem, size).weights();
}

#define FASTCNN_INSTANTIATE(T)                                                                                    \
  template void conv2d_winograd<T>(const std::vector<GatherConv<T>>&, WinogradSize);                              \
  template std::unique_ptr<const PreparedConv<T>> prepare_conv2d_winograd<T>(const GatherConv<T>&, WinogradSize); \
  template at::Tensor conv2d_winograd_weight<T>(const GatherConv<T>&, WinogradSize);                              \
  template void conv2d_grad_weight_winograd<T>(const Conv2dGeometry&, WinogradSize, const at::Tensor&,            \
                                               const at::Tensor&, at::Tensor&);
FASTCNN_ELEMENTS(FASTCNN_INSTANTIATE)
#undef FASTCNN_INSTANTIATE

}  // namespace fastcnn::cpu
