"""The rooflines: bytes and operations of known layers, and the page that is written from them."""

from __future__ import annotations

from pathlib import Path

import cuda_roofline
import pytest
from cuda_roofline import H100, RTX4090, passes
from layers import Layer


def layer(op: str, **fields: object) -> Layer:
    sizes = {"channels": 64, "height": 8, "width": 8, "kernel": 0, **fields}
    return Layer("some", op, op, ours=abs, theirs=abs, **sizes)  # type: ignore[arg-type]


def test_roofline_counts_a_convolution() -> None:
    found = {p.kernel: p for p in passes(layer("conv2d", kernel=3, padding=1, weight=(128, 64, 3, 3)), batch=2)}
    forward = found["conv2d"]
    assert forward.operations == 2 * 2 * 8 * 8 * 128 * 64 * 9
    assert forward.bytes("float32") == 4 * (2 * 64 * 64 + 128 * 64 * 9 + 2 * 128 * 64 + 128)
    assert found["conv2d, gradient of input"].bytes("float16") == 2 * (2 * 64 * 64 + 128 * 64 * 9 + 2 * 128 * 64)
    assert list(found) == [
        *("conv2d", "conv2d, gradient of input", "conv2d, gradient of weight", "conv2d, sums of parts"),
        *("conv2d, ReLU's mask", "conv2d, gradient of ReLU and bias"),
    ]
    weight, output = 128 * 64 * 9, 2 * 128 * 64
    assert found["conv2d, sums of parts"].bytes("float16") == 2 * weight + 4 * weight  # 128 positions: one part
    assert found["conv2d, ReLU's mask"].bytes("float32") == 4 * output + output / 8
    assert found["conv2d, gradient of ReLU and bias"].bytes("float16") == 2 * (2 * output + 128) + output / 8


def test_roofline_counts_the_tiles_of_a_convolution() -> None:
    header = Path(__file__).parents[2] / "csrc" / "cuda" / "conv2d_gemm_tiles.cuh"
    text = header.read_text()
    assert f"kWide = {cuda_roofline.WIDE}, kNarrow = {cuda_roofline.NARROW};" in text
    assert f"kTileM = sizeof(T) == 8 ? 64 : {cuda_roofline.TILE_ROWS};" in text

    problem, launch = (header.with_name(name).read_text() for name in ("conv2d_problem.h", "conv2d_gemm_launch.cu"))
    assert f"kPartBlocks = {cuda_roofline.PART_BLOCKS}, kMaxPartBytes = int64_t{{64}} << 20;" in problem
    assert f"kLeastSteps = {cuda_roofline.LEAST_STEPS};" in launch

    conv = layer("conv2d", kernel=3, padding=1, stride=2, weight=(32, 64, 3, 3))
    forward, grad_input, grad_weight, *_ = (p.tiles for p in passes(conv, batch=9))
    assert forward is not None and (forward.count, forward.filled) == (2, 9 * 16 / 256)  # 9 x 4 x 4 positions
    assert forward.loaded == 2 * (128 + 32) * 9 * 64
    assert grad_input is not None and (grad_input.count, grad_input.filled) == (8, 9 * 16 / 256)  # in each of 4 phases
    assert grad_input.loaded == 2 * (128 + 64) * 9 * 32
    assert grad_weight is not None and (grad_weight.count, grad_weight.filled) == (5, 9 * 64 / 640)
    assert cuda_roofline.Tiles(576, 32, 128 * 9).parts == 9 and cuda_roofline.Tiles(576, 32, 1 << 20).parts == 103
    assert cuda_roofline.Tiles(4608, 512, 1 << 20).parts == 2 and cuda_roofline.Tiles(9216, 1024, 1 << 20).parts == 1
    pool = next(passes(layer("max_pool2d", kernel=2, stride=2), batch=1))
    assert cuda_roofline.tile_cells(pool) == [""] * 4


def test_roofline_counts_what_training_keeps() -> None:
    pool = next(passes(layer("max_pool2d", kernel=2, stride=2), batch=1))
    assert pool.bytes("float32") == 4 * (64 * 64 + 64 * 16) + 64 * 16
    norm = list(passes(layer("batch_norm_relu"), batch=1))[1]
    assert norm.bytes("float16") == 2 * 2 * 64 * 64 + 64 * 64 / 8 + 4 * 4 * 64
    joined = next(passes(layer("concat", parts=(32, 32)), batch=1))
    assert (joined.bytes("float32"), joined.operations) == (2 * 4 * 64 * 64, 0)


def test_roofline_is_the_slower_of_memory_and_arithmetic() -> None:
    sizes = [(4, 1), (1024, 3)]
    few, many = (next(passes(layer("conv2d", channels=c, kernel=k, weight=(c, c, k, k)), batch=512)) for c, k in sizes)
    for gpu in (H100, RTX4090):
        assert few.seconds(gpu, "float32") == few.bytes("float32") / gpu.bandwidth
        assert many.seconds(gpu, "float16") == pytest.approx(many.operations / gpu.matrix["float16"])


def test_roofline_page_is_the_one_in_docs() -> None:
    page = Path(__file__).parents[2] / "docs" / "cuda-roofline.md"
    assert page.read_text() == cuda_roofline.page(), "run: python benchmarks/cuda_roofline.py > docs/cuda-roofline.md"
