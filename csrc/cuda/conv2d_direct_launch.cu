// Launch geometry of direct convolution: of the tiles that fit, the ones of the least estimated work.
#include <optional>

#include "conv2d_direct.cuh"
#include "conv2d_direct_launch.h"
#include "conv2d_problem.h"

namespace fastcnn::cuda {
namespace {

// Instructions, roughly, for a unit of the patch (an element or vector, into shared memory), and beside the products of
// a term. Estimated from the code, not measured.
constexpr int64_t kPatchCost = 40, kTermCost = 16;
constexpr int64_t kLeastTiles = 2;  // of a part of the weight's gradient

// Positions of a tile along one dimension to elements of the patch under them.
struct PatchAxis {
  int64_t step, reach;
  int64_t size(int64_t positions) const { return (positions - 1) * step + reach + 1; }
};
PatchAxis patch_axis(Conv2dPass pass, int64_t kernel, int64_t stride, int64_t dilation) {
  if (pass != Conv2dPass::grad_input) return {stride, (kernel - 1) * dilation};
  const int64_t divisor = std::gcd(stride, dilation);
  return {1, (ceil_div(kernel, stride / divisor) - 1) * (dilation / divisor)};
}

class Planner {
 public:
  explicit Planner(const Conv2dArgs& args)
      : args_(args),
        g_(args.geometry),
        sizes_(phase_sizes(args)),
        h_(patch_axis(args.pass, g_.kernel_h, g_.stride_h, g_.dilation_h)),
        w_(patch_axis(args.pass, g_.kernel_w, g_.stride_w, g_.dilation_w)),
        bytes_(element_bytes(args.dtype)) {
    const bool of_input = args.pass != Conv2dPass::grad_input;
    depth_ = of_input ? g_.group_in() : g_.group_out(), lanes_ = of_input ? g_.group_out() : g_.group_in();
    vector_ = has_vectors(args, depth_) ? 16 / bytes_ : 1;
    taps_ = g_.kernel_h * g_.kernel_w;
  }

  // None where no tile fits.
  std::optional<Conv2dTile> choose() const {
    std::optional<Choice> best;
    for (int64_t tile_h = 1; tile_h <= 32; tile_h *= 2)
      for (int64_t tile_w = 1; tile_w <= kDirectThreads * kDirectPixels; tile_w *= 2) {
        if ((tile_h > 1 && tile_h / 2 >= sizes_.rows) || (tile_w > 1 && tile_w / 2 >= sizes_.columns)) continue;
        const Conv2dTile tile{std::min(tile_h, sizes_.rows), std::min(tile_w, sizes_.columns), 0, 0, 0};
        args_.pass == Conv2dPass::grad_weight ? try_grad_weight(tile, best) : try_tile(tile, best);
      }
    if (!best) return std::nullopt;
    return best->tile;
  }

  Conv2dPlan plan() const {
    return args_.pass == Conv2dPass::grad_weight ? grad_weight_plan(args_.tile) : tile_plan(args_.tile);
  }

 private:
  struct Choice {
    Conv2dTile tile;
    int64_t cost;
  };

  int64_t tiles(const Conv2dTile& c) const {
    return g_.batch * ceil_div(sizes_.rows, c.tile_h) * ceil_div(sizes_.columns, c.tile_w);
  }
  int64_t patch(const Conv2dTile& c) const { return h_.size(c.tile_h) * w_.size(c.tile_w) * c.groups * c.chunk; }
  bool fits(const Conv2dTile& c) const {
    return h_.size(c.tile_h) < kPatchBytes && w_.size(c.tile_w) < kPatchBytes && patch(c) * bytes_ <= kPatchBytes;
  }
  int64_t unit(int64_t chunk) const { return chunk % vector_ == 0 ? vector_ : 1; }
  int64_t quads() const { return ceil_div(lanes_, kDirectQuad); }  // of a group

  void keep(const Conv2dTile& tile, int64_t cost, std::optional<Choice>& best) const {
    if (!best || cost < best->cost) best = Choice{tile, cost};
  }

  // Output or input's gradient: a block's quads take the whole tile.
  void try_tile(Conv2dTile c, std::optional<Choice>& best) const {
    const int64_t all = g_.groups * quads();
    for (c.quads = 1; c.quads <= kDirectQuads && (c.quads == 1 || c.quads / 2 < all); c.quads *= 2) {
      const int64_t positions = kDirectThreads / c.quads * kDirectPixels;
      if (c.tile_h * c.tile_w > positions) break;
      // As many groups as neighbouring quads may belong to.
      c.groups = quads() % c.quads == 0   ? 1
                 : c.quads % quads() == 0 ? c.quads / quads()
                                          : (c.quads + quads() - 2) / quads() + 1;
      for (c.chunk = depth_; !fits(c) && c.chunk > 1;) {
        c.chunk /= 2;
        if (c.chunk > vector_) c.chunk -= c.chunk % vector_;
      }
      if (!fits(c)) continue;
      const int64_t products = taps_ * depth_ * (kDirectPixels * (kDirectQuad + 1) + kTermCost);
      const int64_t patches = ceil_div(depth_, c.chunk) * patch(c) / unit(c.chunk) * kPatchCost / kDirectThreads;
      keep(c, ceil_div(all, c.quads) * tiles(c) * (products + patches), best);
    }
  }

  Conv2dPlan tile_plan(const Conv2dTile& c) const {
    Conv2dPlan plan{make_problem(args_), 0, 0};
    Conv2dProblem& p = plan.problem;
    set_patch(c, p);
    p.block_vectors = static_cast<int>(c.quads), p.block_slices = kDirectThreads / p.block_vectors;
    p.tiles_n = static_cast<int>(ceil_div(g_.groups * quads(), c.quads)), p.tiles_m = static_cast<int>(tiles(c));
    plan.blocks = sizes_.phases * p.tiles_m * p.tiles_n;
    return plan;
  }

  // The weight's gradient: a block's threads share the gradients of its groups, or where these are few, the positions.
  void try_grad_weight(Conv2dTile c, std::optional<Choice>& best) const {
    c.chunk = depth_;
    for (c.groups = 1; c.groups == 1 || c.groups / 2 < g_.groups; c.groups *= 2) {
      const int64_t positions = c.tile_h * c.tile_w, grads = positions * c.groups * quads() * kDirectQuad;
      if (!fits(c) || grads * bytes_ > kGradTileBytes) break;
      const int64_t per_position = kDirectRows * (kDirectQuad + 1) + kTermCost;
      const int64_t products = ceil_div(positions, slices(c)) * per_position;
      const int64_t loads = (patch(c) / unit(c.chunk) + grads) * kPatchCost / kDirectThreads;
      keep(c, ceil_div(g_.groups, c.groups) * unit_tiles(c) * tiles(c) * (products + loads), best);
    }
  }
  int64_t units(const Conv2dTile& c) const { return c.groups * quads() * ceil_div(taps_ * depth_, kDirectRows); }
  int64_t unit_tiles(const Conv2dTile& c) const { return ceil_div(units(c), kDirectThreads); }
  int64_t slices(const Conv2dTile& c) const { return std::max<int64_t>(1, kDirectThreads / units(c)); }

  Conv2dPlan grad_weight_plan(const Conv2dTile& c) const {
    Conv2dPlan plan{make_problem(args_), 0, 0};
    Conv2dProblem& p = plan.problem;
    set_patch(c, p);
    p.block_slices = static_cast<int>(slices(c));
    p.tiles_n = static_cast<int>(ceil_div(g_.groups, c.groups)), p.tiles_m = static_cast<int>(unit_tiles(c));
    p.patch_tiles = tiles(c);
    const int64_t blocks = int64_t{p.tiles_n} * p.tiles_m;
    p.parts = count_parts(args_, ceil_div(kPartBlocks, blocks), p.patch_tiles / kLeastTiles, p.block_slices);
    plan.parts = p.parts * p.block_slices;
    plan.blocks = blocks * p.parts;
    return plan;
  }

  void set_patch(const Conv2dTile& c, Conv2dProblem& p) const {
    p.tile_h = static_cast<int>(c.tile_h), p.tile_w = static_cast<int>(c.tile_w);
    p.patch_h = static_cast<int>(h_.size(c.tile_h)), p.patch_w = static_cast<int>(w_.size(c.tile_w));
    p.block_groups = static_cast<int>(c.groups), p.chunk = static_cast<int>(c.chunk);
    p.patch_unit = static_cast<int>(unit(c.chunk));
    p.tile_columns = make_divisor(p.tile_w), p.patch_columns = make_divisor(p.patch_w);
    p.patch_units = make_divisor(c.groups * c.chunk / p.patch_unit), p.chunks = make_divisor(c.chunk);
    p.grad_pitches = make_divisor(c.groups * quads() * kDirectQuad);
  }

  const Conv2dArgs& args_;
  const Conv2dGeometry& g_;
  PhaseSizes sizes_;
  PatchAxis h_, w_;
  int64_t bytes_, depth_, lanes_, vector_, taps_;
};

Conv2dPlan make_plan(const Conv2dArgs& args) { return Planner(args).plan(); }

}  // namespace

bool choose_conv2d_direct_tile(Conv2dArgs& args) {
  const std::optional<Conv2dTile> tile = Planner(args).choose();
  if (tile) args.tile = *tile;
  return tile.has_value();
}

int64_t conv2d_direct_parts(const Conv2dArgs& args) { return count_plans_parts(args, make_plan); }

cudaError_t launch_conv2d_direct(const Conv2dArgs& args, cudaStream_t stream) {
  return launch_plans(args, make_plan, [&](const Conv2dPlan& plan) {
    return with_element(args.dtype, [&]<typename T>() {
      const unsigned blocks = static_cast<unsigned>(plan.blocks);
      return args.pass == Conv2dPass::grad_weight
                 ? launch("conv2d_direct_grad_weight_kernel", conv2d_direct_grad_weight_kernel<T>, blocks,
                          kDirectThreads, stream, plan.problem)
                 : launch("conv2d_direct_kernel", conv2d_direct_kernel<T>, blocks, kDirectThreads, stream,
                          plan.problem);
    });
  });
}

}  // namespace fastcnn::cuda
