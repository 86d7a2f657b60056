"""The benchmarks' targets: what they count, that each has layers to be measured on, what the report says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import report
import targets
from layers import NETWORKS, distinct_layers
from test_layers import backward_cases


def cases() -> list[targets.Row]:
    """Every case of the benchmarks, as their conftest describes it."""
    found = []
    for layer, direction in [*((layer, "forward") for layer in distinct_layers()), *backward_cases()]:
        for batch in (1, 8, 32):
            elements = batch * layer.channels * layer.height * layer.width
            case = {"pass": direction, "batch": batch, "flop": layer.flop(batch), "elements": elements}
            found.append({**layer.fields(), **case})
    networks = [(n, p, b) for n in NETWORKS for p in ("training step", "peak memory") for b in (1, 8, 32)]
    return found + [{"network": network, "pass": direction, "batch": batch} for network, direction, batch in networks]


def convolution(**changes: Any) -> targets.Row:
    row = {"op": "conv2d", "network": "resnet18", "layer": "conv3x3/1 -> 64", "input": "64x24x24", "channels": 64,
           "out_channels": 64, "size": 24, "kernel": 3, "stride": 1, "pass": "forward", "batch": 8, "threads": 1,
           "ratio": 2.5, "ratio_rule": 2.5}  # fmt: skip
    return {**row, **changes}


RULE = "any layer, by the default rule (fallback on)"


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["3x3, 64 to 128 channels, maps from 12x12, batch 8 and more"]),
        ({"batch": 1}, ["3x3, 64 to 128 channels, maps from 24x24, batch 1"]),
        ({"batch": 1, "size": 14}, []),
        ({"out_channels": 32}, []),
        ({"stride": 2}, []),
        ({"size": 3, "batch": 1}, ["maps up to 7x7, batch 1", "3x3 maps, any batch"]),
        ({"pass": "gradient of input"}, ["gradient of input, 3x3, 64 to 128 channels, batch 8 and more"]),
        ({"pass": "gradient of weight"}, ["gradient of weight, 3x3, 64 to 128 channels, batch 8 and more"]),
        ({"pass": "gradient of weight", "kernel": 1}, ["gradient of weight, all other layers, batch 8 and more"]),
        ({"op": "max_pool2d"}, ["max pooling, forward"]),
    ],
)
def test_targets_count_what_they_name(changes: dict[str, Any], names: list[str]) -> None:
    row = convolution(**changes)
    assert [t.name for t in targets.TARGETS if t.counts(row)] == [*names, RULE]


def test_targets_are_all_answered_by_the_selection() -> None:
    chosen = targets.selected(cases())
    for target in targets.TARGETS:
        for batch in target.batches:
            assert any(target.counts(case) and case["batch"] == batch for case in chosen), (target.name, batch)
    assert len(chosen) < 160  # at some 1.5 s a layer and number of threads


def test_targets_are_met_by_the_worst_row_or_by_the_mean() -> None:
    rows = [convolution(ratio=r, layer=str(r)) for r in (4.0, 2.0, 1.99)] + [convolution(threads=2)]
    one, two = [r for r in targets.results(rows) if r.target.name.startswith("3x3, 64 to 128")]
    assert (one.threads, one.rows, one.reached, one.worst, one.met) == (1, 3, 2, 1.99, False)
    assert one.worst_row == "1.99 on 64x24x24, forward, batch 8"
    assert (two.threads, two.rows, two.reached, two.met) == (2, 1, 1, True)
    steps = [
        {"network": name, "pass": "training step", "batch": 32, "threads": 1, "ratio_best": value}
        for name, value in (("vgg11", 1.5), ("nin", 2.5))
    ]
    met = {r.target.name: r.met for r in targets.results(steps)}
    assert met == {
        "training step, batch 32, against the best of torch": True,
        "training step, batch 32, geometric mean of the seven": True,
        "training step of VGG-11, batch 32": False,
    }
    memory = [{"network": "densenet", "pass": "peak memory", "batch": 32, "threads": 2, "of_memory": 0.7}]
    assert [r.met for r in targets.results(memory)] == [True, False]


def test_report_says_which_targets_are_met(tmp_path: Path) -> None:
    machine = {
        "cpu": "Some CPU", "capability": "avx2", "torch": "2.13.0", "torch_capability": "AVX2", "command": "make bench",
        "dtype": "float32", "float32_precision": "highest",
        "peaks": {"1": {"gflops": 100.0, "copy_gbs": 10.0, "torch_threads": 1}},
    }  # fmt: skip
    measured = {"ms": {"fastcnn": 1.0, "torch channels_last": 2.5, "torch NCHW": 3.0}, "ratio_quartiles": [2.4, 2.6],
                "kernels": "conv2d_direct", "flop": 1e9, "bytes": 1e6}  # fmt: skip
    step = {"network": "nin", "pass": "training step", "batch": 32, "threads": 1, "ratio": 1.2, "ratio_best": 1.1,
            "ms": {**measured["ms"], "torch.compile": 1.1}, "best": "torch.compile"}  # fmt: skip
    memory = {"network": "nin", "pass": "peak memory", "batch": 32, "threads": 1, "of_memory": 0.8,
              "MB": {"fastcnn": 80.0, "torch channels_last": 100.0}}  # fmt: skip
    rows = [convolution(**measured), step, memory]
    data = {"machine_info": {"fastcnn": machine}, "benchmarks": [{"extra_info": row} for row in (*rows, {})]}
    (tmp_path / "benchmark.json").write_text(json.dumps(data))
    report.main(tmp_path / "benchmark.json", tmp_path)
    folder = tmp_path / "some-cpu-avx2"
    text = (folder / "report.md").read_text()
    assert "| 1 | 1 | 1 | 2.50 | 2.50 | 2.0 | met |" in text
    assert (
        "| training step, batch 32, against the best of torch | nin | 1 | 1 | 0 | 1.10 | 1.10 | 1.3 | **missed** |"
        in text
    )
    assert "| peak memory of a training step | nin | 1 | 1 | 1 | 0.80 | 0.80 | at most 0.9 | met |" in text
    assert "| nin | torch.compile | 32 | 1 | 1.0 | 3.0 | 2.5 | 1.1 | 1.20 | 1.10 |" in text
    titles = ["## Targets", "## Training steps", "## Peak memory", "## Layers"]
    assert sorted(titles, key=text.index) == titles
    page = (folder / "index.html").read_text()
    assert all(title[3:] in page for title in titles) and page.count("<img") == 2


def test_targets_of_a_half_type_are_to_be_never_slower() -> None:
    found = targets.results([convolution(ratio=0.5, ratio_rule=0.9)], "bfloat16")
    assert [(r.target.name, r.met) for r in found] == [(RULE, False)]
