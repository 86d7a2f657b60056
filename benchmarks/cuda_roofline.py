"""The least time that the layers of the networks can take on two GPUs: python benchmarks/cuda_roofline.py

Nothing here is measured. Every tensor of a pass moves once at the memory's bandwidth, every operation runs at the
peak of the unit that does it; the slower of the two is the roofline (Williams, Waterman, Patterson 2009). Launches,
caches and the shape of tiles are left out of it, so a kernel takes longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from layers import NETWORKS, Layer, distinct_layers

BATCH = 32
# Of csrc/cuda/conv2d_gemm_tiles.cuh: kTileM, and kWide or, where that is enough, kNarrow.
TILE_ROWS, WIDE, NARROW = 128, 64, 32
# Of csrc/cuda: kPartBlocks, kMaxPartBytes, kLeastSteps, and the kDepth of tiles of half types.
PART_BLOCKS, MAX_PART_BYTES, LEAST_STEPS, STEP = 512, 64 << 20, 4, 32
ELEMENT_BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True)
class Gpu:
    """Peaks from the maker's papers: bytes/s, and operations/s of convolutions and of the other ops."""

    name: str
    bandwidth: float
    matrix: dict[str, float]  # of tensor cores without sparsity, accumulating in float32; float32's by TF32
    vector: float  # float32 on CUDA cores


# "NVIDIA H100 Tensor Core GPU Architecture", H100 SXM5; "NVIDIA Ada GPU Architecture", appendix A, GeForce RTX 4090.
H100 = Gpu("H100", 3352e9, {"float32": 494.7e12, "float16": 989.4e12}, 66.9e12)
RTX4090 = Gpu("RTX 4090", 1008e9, {"float32": 82.6e12, "float16": 165.2e12}, 82.6e12)
GPUS = (H100, RTX4090)


@dataclass(frozen=True)
class Tiles:
    """A convolution as an implicit GEMM: `phases` products of rows x columns, over `depth` terms in all of them."""

    rows: int
    columns: int
    depth: int
    phases: int = 1

    @property
    def width(self) -> int:
        """Columns of a tile."""
        return NARROW if self.columns <= NARROW else WIDE

    @property
    def count(self) -> int:
        """Tiles of the result. Where they are few, each is summed in parts by several blocks."""
        return self.phases * -(-self.rows // TILE_ROWS) * -(-self.columns // self.width)

    @property
    def parts(self) -> int:
        """Blocks that share a tile's sums, in the gradient of a weight."""
        wanted, room = -(-PART_BLOCKS // self.count), MAX_PART_BYTES // (4 * self.rows * self.columns)
        return max(1, min(wanted, self.depth // (LEAST_STEPS * STEP), room))

    @property
    def filled(self) -> float:
        """The share of the tiles' elements that are results."""
        return self.phases * self.rows * self.columns / (self.count * TILE_ROWS * self.width)

    @property
    def loaded(self) -> float:
        """Elements that the blocks load: each tile a line of rows and one of columns for each term."""
        return self.count / self.phases * (TILE_ROWS + self.width) * self.depth


@dataclass(frozen=True)
class Pass:
    """What one kernel, or one pair of them, moves and computes for a layer."""

    network: str
    kernel: str
    layer: str
    input: str
    elements: float  # of the tensors' dtype, each read or written once
    other_bytes: float  # float32 statistics, masks, offsets
    operations: float  # a multiplication and an addition are two
    on_tensor_cores: bool
    tiles: Tiles | None = None

    def bytes(self, dtype: str) -> float:
        """Bytes moved at least."""
        return self.elements * ELEMENT_BYTES[dtype] + self.other_bytes

    def seconds(self, gpu: Gpu, dtype: str) -> float:
        """The roofline."""
        peak = gpu.matrix[dtype] if self.on_tensor_cores else gpu.vector
        return max(self.bytes(dtype) / gpu.bandwidth, self.operations / peak)


def passes(layer: Layer, batch: int = BATCH) -> Iterator[Pass]:
    """The passes of a layer in training: forward, then what its backward launches."""
    image = batch * layer.channels * layer.height * layer.width
    out_channels = layer.weight[0] if layer.weight else layer.channels
    output = batch * out_channels * out_size(layer, layer.height) * out_size(layer, layer.width)
    base = Pass(layer.network, "", layer.name, f"{layer.channels}x{layer.height}x{layer.width}", 0, 0, 0, False)
    if layer.weight:
        out, in_channels, height, width = layer.weight
        weight = out * in_channels * height * width
        conv = replace(base, operations=layer.flop(batch), elements=image + weight + output, on_tensor_cores=True)
        positions, taps, stride = output // out, height * width, layer.stride
        forward = Tiles(positions, out, taps * in_channels)
        yield replace(conv, kernel="conv2d", elements=conv.elements + out, tiles=forward)
        if layer.channels > 3:  # images need no gradient
            phase = batch * -(-layer.height // stride) * -(-layer.width // stride)
            tiles = Tiles(phase, in_channels, taps * out, phases=stride**2)
            yield replace(conv, kernel="conv2d, gradient of input", tiles=tiles)
        tiles = Tiles(taps * in_channels, out, positions)
        yield replace(conv, kernel="conv2d, gradient of weight", elements=conv.elements + out, tiles=tiles)
        # Its parts in float32 are read, and their sum is written.
        sums = replace(base, elements=weight, other_bytes=4 * tiles.parts * weight, operations=tiles.parts * weight)
        yield replace(sums, kernel="conv2d, sums of parts")
        # With a ReLU: its mask, from the output; and of the output's gradient what passes it, and the bias's.
        yield replace(base, kernel="conv2d, ReLU's mask", elements=output, other_bytes=output / 8, operations=output)
        masked = replace(base, elements=2 * output + out, other_bytes=output / 8, operations=output)
        yield replace(masked, kernel="conv2d, gradient of ReLU and bias")
    elif layer.op == "max_pool2d":
        window = output * layer.kernel**2
        yield replace(base, kernel="max_pool2d", elements=image + output, other_bytes=output, operations=window)
        yield replace(
            base, kernel="max_pool2d, backward", elements=image + output, other_bytes=output, operations=output
        )
    elif layer.op == "avg_pool2d":
        pool = replace(base, elements=image + output, operations=output * layer.kernel**2)
        yield replace(pool, kernel="avg_pool2d")
        yield replace(pool, kernel="avg_pool2d, backward")
    elif layer.op == "batch_norm_relu":
        channels, mask = 4 * layer.channels, image / 8
        # Statistics read the input; normalising reads it again, writes the output and the ReLU's mask; each of the
        # two passes of backward reads gradient, input and mask, and the second one writes a gradient.
        yield replace(
            base, kernel="batch_norm, statistics", elements=image, other_bytes=2 * channels, operations=4 * image
        )
        norm = replace(base, elements=2 * image, other_bytes=mask + 4 * channels)
        yield replace(norm, kernel="batch_norm, normalise + ReLU", operations=3 * image)
        yield replace(norm, kernel="batch_norm, backward sums", operations=5 * image)
        yield replace(norm, kernel="batch_norm, gradient of input", elements=3 * image, operations=5 * image)
    else:
        yield replace(base, kernel="concat", elements=2 * image)


def out_size(layer: Layer, size: int) -> int:
    """Height or width of what comes out."""
    return (size + 2 * layer.padding - layer.kernel) // layer.stride + 1 if layer.kernel else size


HEAD = ["MB", "op/byte", *(f"{gpu.name} µs" for gpu in GPUS)]


def cells(group: list[Pass]) -> list[str]:
    """Bytes, intensity and time in both dtypes, summed over a group of passes."""
    found = []
    for dtype in ELEMENT_BYTES:
        moved = sum(p.bytes(dtype) for p in group)
        found += [f"{moved / 1e6:.1f}", f"{sum(p.operations for p in group) / moved:.1f}"]
        found += [f"{1e6 * sum(p.seconds(gpu, dtype) for p in group):.1f}" for gpu in GPUS]
    return found


TILES_HEAD = ["tiles", "filled", *(f"{dtype}: tiles' op/byte" for dtype in ELEMENT_BYTES)]


def tile_cells(p: Pass) -> list[str]:
    """What the shape of tiles implies; of a pass that has none, nothing."""
    if p.tiles is None:
        return [""] * len(TILES_HEAD)
    intensities = (p.operations / (p.tiles.loaded * size) for size in ELEMENT_BYTES.values())
    return [str(p.tiles.count), f"{p.tiles.filled:.0%}", *(f"{value:.1f}" for value in intensities)]


def rows(first: list[str], groups: dict[tuple[str, ...], list[Pass]], *, tiles: bool = False) -> Iterator[str]:
    """A table in Markdown; where every group is one pass, perhaps with its tiles."""
    head = ["GFLOP", *(f"{dtype}: {head}" for dtype in ELEMENT_BYTES for head in HEAD), *(TILES_HEAD if tiles else [])]
    yield line([*first, *head])
    yield line(["---"] * len(first) + ["--:"] * len(head))
    for key, group in groups.items():
        more = tile_cells(group[0]) if tiles else []
        yield line([*key, f"{sum(p.operations for p in group) / 1e9:.3f}", *cells(group), *more])


def line(values: list[str]) -> str:
    """One row of it."""
    return "| " + " | ".join(values) + " |"


def page() -> str:
    """The whole page."""
    found = [p for layer in distinct_layers() if layer.network in NETWORKS for p in passes(layer)]
    sums: dict[tuple[str, ...], list[Pass]] = {}
    for p in found:
        sums.setdefault((p.network, p.kernel), []).append(p)
    each = {(p.network, p.kernel, p.layer, p.input): [p] for p in found}
    peaks = [
        f"- {gpu.name}: {gpu.bandwidth / 1e12:.2f} TB/s; {gpu.matrix['float32'] / 1e12:.0f} TFLOP/s on tensor cores in "
        f"TF32 and {gpu.matrix['float16'] / 1e12:.0f} in float16 and bfloat16; {gpu.vector / 1e12:.0f} on CUDA cores"
        for gpu in GPUS
    ]
    parts = [
        "# Rooflines of the CUDA kernels",
        "Written by `python benchmarks/cuda_roofline.py`; computed, not measured. See [cuda.md](cuda.md).\n",
        f"Batch {BATCH}, training. Every tensor moves once; every operation runs at the peak; the time is the longer "
        "of the two. A layer that is there several times counts once, with the first network that has it. Peaks, from "
        "the maker's papers:\n",
        *peaks,
        "\nfloat32 as it is, without TF32, is multiplied on CUDA cores: where a convolution is bound by operations, "
        f"an H100 then needs {H100.matrix['float32'] / H100.vector:.1f} times as long, and an RTX 4090 as long. "
        "Results of up to 8 channels a group (LeNet's first layer) go to the direct kernel there; on tensor cores "
        "those of up to 4, which none of these layers has. What is left out moves few numbers a channel: the kernels "
        "that merge the tiles' statistics, update the running ones, and turn a batch norm's sums into factors.",
        "\n## Sums over each network's layers\n",
        *rows(["network", "pass"], sums),
        "\n## Every layer\n",
        "Behind the roofline of a convolution, what the implicit GEMM's tiles imply: how many there are, of "
        f"{TILE_ROWS} positions (of the weight's gradient: taps and channels) by {WIDE} channels, or {NARROW} where "
        "there are no more; the share of their elements that are results; and operations for each byte that the blocks "
        "load, from the memory or a cache. Where there are too few tiles to fill a GPU, several blocks share each "
        "one's sums. The other passes have no tiles: each block walks over values that lie together, loads each once, "
        "and has the roofline's op/byte.\n",
        *rows(["network", "pass", "layer", "input"], each, tiles=True),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
