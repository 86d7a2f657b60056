"""Fits the rule that chooses a convolution's algorithm, and proves it on layers that it was not fitted to.

    python benchmarks/conv2d_rule.py measure fit.json              # times every algorithm on the layers to fit
    python benchmarks/conv2d_rule.py fit fit.json [avx2.json]      # writes csrc/cpu/conv2d_costs.h
    python benchmarks/conv2d_rule.py measure timm.json --layers timm
    python benchmarks/conv2d_rule.py prove timm.json               # the built rule against what was measured
    python benchmarks/conv2d_rule.py list-timm                     # writes timm_layers.json anew (needs timm)

The rule takes the algorithm of the least estimated time. The estimate is linear in the counts of conv2d_counts
(csrc/cpu/conv2d_choice.cpp); its coefficients are not negative and minimise the relative error.
"""

from __future__ import annotations

import ctypes
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch
import torch.nn.functional as F
import typer
from layers import distinct_layers
from scipy.optimize import nnls
from torch import Tensor

from fastcnn import _library, backends
from fastcnn._machine import cpu_name

COSTS = Path(__file__).parents[1] / "csrc" / "cpu" / "conv2d_costs.h"
TIMM_LAYERS = Path(__file__).with_name("timm_layers.json")
PASSES = ("forward", "grad_input", "grad_weight")
ROUNDS = 3
ROUND_SECONDS = 0.004
LARGEST = 1.5e9  # FLOP of a layer to measure: larger ones behave as these do and take minutes

# batch, channels, height, width, out_channels, kernel_h, kernel_w, stride, padding, groups
Shape = tuple[int, int, int, int, int, int, int, int, int, int]

app = typer.Typer(add_completion=False, help=__doc__)


def flop(shape: Shape) -> float:
    """Multiplications and additions of a forward pass."""
    n, c, _, _, k, kh, kw, _, _, groups = shape
    _, _, _, _, _, out_h, out_w, *_ = geometry(shape)
    return 2.0 * n * out_h * out_w * k * (c // groups) * kh * kw


def geometry(shape: Shape) -> tuple[int, ...]:
    """A shape as the library's Conv2dGeometry."""
    n, c, h, w, k, kh, kw, stride, padding, groups = shape
    out_h, out_w = (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1
    return (n, c, h, w, k, out_h, out_w, kh, kw, stride, stride, padding, padding, 1, 1, groups)


def _geometry_array(shape: Shape) -> Any:
    values = geometry(shape)
    return (ctypes.c_int64 * len(values))(*values)


def algorithms() -> list[str]:
    """The names of the algorithms, in the order of their values."""
    return str(_library.load().fastcnn_conv2d_algorithms().decode()).split()


def applicable(pass_: int, shape: Shape) -> list[str]:
    """The algorithms that compute a pass of a shape."""
    library = _library.load()
    return [
        name
        for value, name in enumerate(algorithms())
        if name != "automatic" and library.fastcnn_conv2d_applies(pass_, value, _geometry_array(shape))
    ]


def counts(pass_: int, algorithm: str, shape: Shape) -> list[float]:
    """What the estimate of an algorithm's time is made from."""
    result = (ctypes.c_double * 5)()
    _library.load().fastcnn_conv2d_counts(pass_, algorithms().index(algorithm), _geometry_array(shape), result)
    return list(result)


def choice(pass_: int, shape: Shape) -> str:
    """What the built rule chooses."""
    return algorithms()[_library.load().fastcnn_conv2d_choice(pass_, _geometry_array(shape))]


def layers_to_fit() -> list[Shape]:
    """The convolutions of the benchmarks' networks, and others drawn at random from what networks are made of."""
    shapes: set[Shape] = set()
    for layer in distinct_layers():
        if layer.weight is not None:
            keywords = layer.ours.keywords  # type: ignore[attr-defined]
            k, _, kh, kw = layer.weight
            stride, padding = keywords["stride"][0], keywords["padding"][0]
            for n in (1, 16):
                shapes.add((n, layer.channels, layer.height, layer.width, k, kh, kw, stride, padding, 1))
    drawn = random.Random(0)
    for _ in range(300):
        kernel = drawn.choice([1, 1, 3, 3, 3, 5, 7])
        c, k = (drawn.choice([3, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512]) for _ in range(2))
        side = drawn.choice([3, 4, 6, 7, 8, 12, 14, 16, 24, 28, 32, 56])
        stride, n = drawn.choice([1, 1, 1, 2]), drawn.choice([1, 2, 8, 32])
        shapes.add((n, c, side, side, k, kernel, kernel, stride, kernel // 2, 1))
    for _ in range(40):  # grouped layers, and those that are matrix products in disguise
        c, groups, stride = drawn.choice([128, 256, 512]), drawn.choice([2, 8, 32]), drawn.choice([1, 2])
        side, n = drawn.choice([7, 14, 28]), drawn.choice([1, 8])
        shapes.add((n, c, side, side, c, 3, 3, stride, 1, groups))
        shapes.add((n, drawn.choice([512, 1024, 2048, 4096]), 1, 1, drawn.choice([512, 1000, 4096]), 1, 1, 1, 0, 1))
    return sorted(s for s in shapes if 1e6 <= flop(s) <= LARGEST)


def timm_layers() -> list[Shape]:
    """Layers of timm's models, at batch 1 and 8, less those that the rule is fitted to."""
    fitted = {s[1:] for s in layers_to_fit()}
    listed = [tuple(layer) for layer in json.loads(TIMM_LAYERS.read_text())]
    shapes = [(n, *layer) for layer in listed if layer not in fitted for n in (1, 8)]
    return [s for s in shapes if 1e6 <= flop(s) <= LARGEST]


def _seconds(call: Callable[[], Any], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


def _passes(shape: Shape) -> list[Callable[[], Tensor]]:
    n, c, h, w, k, kh, kw, stride, padding, groups = shape
    nhwc = torch.channels_last
    input = torch.randn(n, c, h, w).relu_().to(memory_format=nhwc)
    weight = (torch.randn(k, c // groups, kh, kw) * (c * kh * kw) ** -0.5).to(memory_format=nhwc)
    grad = torch.randn_like(F.conv2d(input, weight, None, stride, padding, 1, groups))
    arguments = ([stride] * 2, [padding] * 2, [1, 1], groups)
    forward = torch.ops.fastcnn.conv2d.default
    backward = torch.ops.fastcnn.conv2d_backward.default
    return [
        lambda: forward(input, weight, None, *arguments, None),
        lambda: backward(grad, input, weight, *arguments, [True, False, False])[0],
        lambda: backward(grad, input, weight, *arguments, [False, True, False])[1],
    ]


def _measure(shape: Shape, pass_: int, call: Callable[[], Tensor]) -> dict[str, float]:
    """Milliseconds of every algorithm, checked against torch's, then timed in turn."""
    names = applicable(pass_, shape)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with backends.conv2d_algorithm("aten"):  # the direct kernels where torch's own must not run
        expected = call()
        calls = max(1, round(ROUND_SECONDS / max(_seconds(call, 1), 1e-6)))
    for name in names:
        with backends.conv2d_algorithm(name):
            error = ((call() - expected).abs().max() / expected.abs().max()).item()
            if not error < 1e-3:
                raise AssertionError(f"{name} of {PASSES[pass_]} {shape} is off by {error:.1e}; nothing was timed")
    for _ in range(ROUNDS):
        for name in names:
            with backends.conv2d_algorithm(name):
                seconds[name].append(_seconds(call, calls))
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


@app.command()
def measure(out: Path, layers: str = "fit", threads: Annotated[list[int], typer.Option()] = [1, 2]) -> None:  # noqa: B006
    """Times every algorithm on the layers to fit, or on timm's."""
    torch.manual_seed(0)
    shapes = {"fit": layers_to_fit, "timm": timm_layers}[layers]()
    rows = []
    with typer.progressbar(shapes) as bar:
        for shape in bar:
            for pass_, call in enumerate(_passes(shape)):
                if pass_ == 1 and shape[1] <= 3:
                    continue  # an image needs no gradient
                for number in threads:
                    torch.set_num_threads(number)
                    ms = _measure(shape, pass_, call)
                    # The counts depend on the registers' width, and so on the capability.
                    by_name = {name: counts(pass_, name, shape) for name in ms}
                    rows.append({"shape": shape, "pass": pass_, "threads": number, "ms": ms, "counts": by_name})
    machine = {
        "cpu": cpu_name(),
        "capability": _library.load().fastcnn_cpu_capability().decode(),
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }
    out.write_text(json.dumps({"machine": machine, "rows": rows}))


def _fit(rows: list[dict[str, Any]], pass_: int, name: str) -> tuple[list[float], float]:
    """Coefficients for one pass and algorithm, and the median relative error of the estimate."""
    logs: dict[tuple[Shape, tuple[float, ...]], list[float]] = {}
    for row in rows:
        if row["pass"] == pass_ and name in row["ms"]:
            key = (tuple(row["shape"]), tuple(row["counts"][name]))
            logs.setdefault(key, []).append(math.log(row["ms"][name]))
    if not logs:
        return [0.0] * 5, math.nan
    # One time a layer: the geometric mean over the numbers of threads.
    times = numpy.array([math.exp(statistics.fmean(values)) for values in logs.values()])
    a = numpy.array([values for _, values in logs]) / times[:, None]
    weights = numpy.ones(len(times))
    for _ in range(10):  # towards the least absolute relative error: one odd layer must not bend the rest
        solution, _ = nnls(a * weights[:, None], weights)
        error = numpy.abs(a @ solution - 1)
        weights = 1 / numpy.sqrt(numpy.maximum(error, 0.03))
    return [float(v) for v in solution], float(numpy.median(error))


@app.command()
def fit(measured: list[Path]) -> None:
    """Writes the coefficients of the rule: one file measured with AVX-512 kernels, one with AVX2 kernels."""
    files = {data["machine"]["capability"]: data for data in (json.loads(path.read_text()) for path in measured)}
    names = algorithms()
    lines = [
        "// Milliseconds a count (conv2d_choice.h), fitted by benchmarks/conv2d_rule.py to the geometric mean of 1",
        "// and 2 threads. Measured on:",
    ]
    used = [files.get("avx2", files.get("avx512")), files.get("avx512", files.get("avx2"))]
    for data, level in zip(used, ("AVX2 and baseline", "AVX-512"), strict=True):
        machine = data["machine"]
        lines.append(f"//   {level}: {machine['cpu']}, {machine['capability']} kernels, torch {machine['torch']}")
    lines += ["#pragma once", "", "namespace fastcnn::cpu {", ""]
    lines += ["// [AVX-512 or not][pass][algorithm][count]", "// clang-format off"]
    lines.append(f"constexpr double kConv2dCosts[2][{len(PASSES)}][{len(names)}][5] = {{")
    for data in used:
        lines.append("    {")
        for pass_, pass_name in enumerate(PASSES):
            lines.append(f"        {{  // {pass_name}")
            for name in names:
                values, error = _fit(data["rows"], pass_, name)
                note = "" if math.isnan(error) else f", median error {100 * error:.0f} %"
                lines.append("            {" + ", ".join(f"{v:.4g}" for v in values) + f"}},  // {name}{note}")
            lines.append("        },")
        lines.append("    },")
    lines += ["};", "// clang-format on", "", "}  // namespace fastcnn::cpu"]
    COSTS.write_text("\n".join(lines) + "\n")
    print(f"wrote {COSTS}")


@app.command()
def prove(measured: Path, worst: int = 15) -> None:
    """Compares what the built rule chooses with what was measured: time of torch over time of the choice."""
    data = json.loads(measured.read_text())
    machine, capability = data["machine"], _library.load().fastcnn_cpu_capability().decode()
    if machine["capability"] != capability:
        raise typer.BadParameter(
            f"{measured} was measured with {machine['capability']} kernels, these are {capability}"
        )
    print(f"{machine['cpu']}, {machine['capability']} kernels, torch {machine['torch']}, channels_last, float32")
    ratios: dict[tuple[int, int], list[tuple[float, float, Shape, str, str]]] = {}
    for row in data["rows"]:
        shape, ms = tuple(row["shape"]), row["ms"]
        if "aten" not in ms:
            continue
        chosen, best = choice(row["pass"], shape), min(ms, key=ms.__getitem__)
        found = (ms["aten"] / ms[chosen], ms[best] / ms[chosen], shape, chosen, best)
        ratios.setdefault((row["pass"], row["threads"]), []).append(found)
    for (pass_, threads), rows in sorted(ratios.items()):
        mean = math.exp(statistics.fmean(math.log(r[0]) for r in rows))
        of_best = math.exp(statistics.fmean(math.log(r[1]) for r in rows))
        slower = sum(r[0] < 0.95 for r in rows) / len(rows)
        print(
            f"{PASSES[pass_]:12} {threads} threads, {len(rows):4} layers: geometric mean {mean:.2f}, "
            f"below 0.95: {100 * slower:.1f} %, of the best choice {of_best:.3f}"
        )
    rows = sorted((r[0], key, *r[2:]) for key, group in ratios.items() for r in group)
    for ratio, (pass_, threads), shape, chosen, best in rows[:worst]:
        print(f"  {ratio:.2f} {PASSES[pass_]} {threads} threads {shape}: chose {chosen}, best {best}")


@app.command()
def list_timm() -> None:
    """Writes the distinct convolutions of some of timm's models, less depthwise ones."""
    import timm

    names = [
        "resnet26d", "resnet50", "resnet101", "wide_resnet50_2", "vgg16", "densenet121", "densenet169", "inception_v3",
        "inception_v4", "xception41", "dla34", "dla60", "hrnet_w18_small", "hrnet_w32", "regnetx_032", "regnety_016",
        "res2net50_26w_4s", "selecsls42b", "cspresnet50", "cspdarknet53", "darknet53", "dpn68", "efficientnet_b0",
        "mobilenetv3_large_100", "repvgg_a2", "resnest26d", "rexnet_100", "skresnet18", "tresnet_m", "vovnet39a",
        "ese_vovnet39b", "nfnet_f0", "hardcorenas_a", "ghostnet_100", "gernet_m", "convnext_tiny", "mixnet_s",
    ]  # fmt: skip
    found: set[tuple[int, ...]] = set()
    for name in names:
        try:
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False).eval()
        except (RuntimeError, NotImplementedError) as error:
            print(f"{name}: {error}")
            continue

        def visit(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            padding = module.padding
            square = not isinstance(padding, str) and padding[0] == padding[1] and module.stride[0] == module.stride[1]
            depthwise = module.groups > 1 and module.groups == module.in_channels
            if square and not depthwise and module.dilation == (1, 1):
                _, c, h, w = args[0].shape
                found.add((c, h, w, module.out_channels, *module.kernel_size, module.stride[0], padding[0],
                           module.groups))  # fmt: skip

        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_pre_hook(visit)
        size = model.default_cfg["input_size"]
        try:
            model(torch.empty(1, *size, device="meta"))
        except (RuntimeError, NotImplementedError) as error:
            print(f"{name}: {error}")
    drawn = random.Random(1).sample(sorted(found), min(320, len(found)))
    TIMM_LAYERS.write_text("[\n" + ",\n".join(json.dumps(layer) for layer in sorted(drawn)) + "\n]\n")
    print(f"{len(found)} layers, {len(drawn)} drawn")


if __name__ == "__main__":
    app()
