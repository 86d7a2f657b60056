"""The comparison with other ways to run networks: what its report says of the measurements."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import bench_peers
import peers
import peers_report
import pytest
import torch


def row(peer: str, ms: float, **changes: Any) -> dict[str, Any]:
    return {"network": "lenet", "batch": 1, "threads": 1, "peer": peer, "facts": "1 threads", "error": 1e-7,
            "date": "2026-01-02", "quartiles": [ms, 2 * ms], "ms": ms,
            "alone_ms": ms, "MB": 10.0, **changes}  # fmt: skip


def test_peers_report_takes_the_best_rival_and_names_what_failed(tmp_path: Path) -> None:
    failed = {"network": "lenet", "batch": 1, "threads": 1, "peer": "OpenVINO", "date": "2026-01-02",
              "failed": "no such operator"}  # fmt: skip
    rows = [row("torch eager", 4.0), row("ONNX Runtime", 3.0, alone_ms=2.0), failed, row("fastcnn converted", 1.2),
            row("fastcnn compiled", 1.5)]  # fmt: skip
    folder = peers_report.write(rows, tmp_path)
    text = (folder / "report.md").read_text()
    assert "| lenet | ONNX Runtime | 1 | 1 | 4 | 3 | failed | 1.2 | 1.5 | 2.00 |" in text
    assert "| LeNet, batch 1, against ONNX Runtime | lenet, batch 1 | met | 1 | 2.0 | 2.00 |" in text
    assert "| VGG-11, batch 32 |  | not measured | 1 | 2.0 |  |" in text
    assert 'PEERS_ARGS="--networks lenet --batches 1 --threads 1"' in text
    assert "| lenet | OpenVINO | failed: no such operator |" in text
    assert "| 3 to 6 | 2 ! | 10 |" in text and "| 4 to 8 | 4 | 10 |" in text
    assert "fastcnn compiled, batch 1, 1 threads: the best rival's time over ours, geometric mean 2.00" in text
    assert "<img" in (folder / "index.html").read_text()


def test_peers_report_keeps_other_networks_of_the_same_versions(tmp_path: Path, monkeypatch: Any) -> None:
    peers_report.write([row("torch eager", 4.0, network="resnet18"), row("torch eager", 2.0)], tmp_path)
    peers_report.write([row("torch eager", 7.0, batch=8)], tmp_path)
    folder = peers_report.write([row("torch eager", 3.0, date="2026-01-03")], tmp_path)
    text = (folder / "report.md").read_text()
    lines = [f"| {name} | torch eager | {batch} | 1 | {ms} |" for name, batch, ms in
             (("lenet", 1, 3), ("lenet", 8, 7), ("resnet18", 1, 4))]  # fmt: skip
    assert text.index(lines[0]) < text.index(lines[1]) < text.index(lines[2])
    assert "measured on 2026-01-02, 2026-01-03" in text and "--networks lenet,resnet18" in text
    monkeypatch.setattr(torch, "__version__", "1.0")
    peers_report.write([row("torch eager", 3.0)], tmp_path)
    assert "resnet18" not in (folder / "report.md").read_text()


def test_peers_are_checked_before_they_are_timed() -> None:
    expected = peers.truth("lenet", 2)
    with torch.no_grad():
        output = peers.network("lenet")(peers.images("lenet", 2))
    assert bench_peers.check("torch", output, expected) < 1e-5
    with pytest.raises(RuntimeError, match=r"wrong: its output is off by 1\.0e"):
        bench_peers.check("wrong", torch.zeros_like(expected), expected)


@pytest.mark.parametrize(
    ("peer", "how"),
    [
        ("torch eager", "NCHW"),
        ("torch channels_last", "channels_last"),
        ("fastcnn converted", "channels_last, without an example"),
    ],
)
def test_peers_of_torch_compute_the_network(peer: str, how: str, tmp_path: Path) -> None:
    images, expected = peers.images("lenet", 2), peers.truth("lenet", 2)
    with peers.threads_of_torch(1):
        made = peers.build(peer, "lenet", 2, 1, tmp_path / "unused.onnx")
        bench_peers.check(peer, made.run(images), expected)
        assert made.facts() == f"1 threads, torch.float32 at precision highest, {how}"


def test_peers_report_says_which_targets_are_missed(tmp_path: Path) -> None:
    rows = []
    for network in peers.OURS:
        for batch in (1, 32):
            ours = 1.0 if network != "nin" or batch == 1 else 2.0
            rows += [row(peer, ms, network=network, batch=batch) for peer, ms in (("ONNX Runtime", 2.1),
                     ("OpenVINO", 1.9), ("fastcnn compiled", ours))]  # fmt: skip
    text = (peers_report.write(rows, tmp_path) / "report.md").read_text()
    assert "| each of the seven networks, batch 1 and 32 | nin, batch 32 | missed | 1 | 1.1 | 0.95 |" in text
    assert f"| geometric mean | mean | met | 1 | 1.5 | {1.9 / 2 ** (1 / 14):.2f} |" in text.replace(
        "the seven networks, batch 1 and 32, geometric mean", "geometric mean"
    )
    assert "| VGG-11, batch 32 | vgg11, batch 32 | missed | 1 | 2.0 | 1.90 |" in text
    assert "| LeNet, batch 1, against ONNX Runtime | lenet, batch 1 | met | 1 | 2.0 | 2.10 |" in text
    assert [*tmp_path.glob("*/speed-batch-32.png")]


def test_cases_that_are_off_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [row("torch eager", 4.0, alone_ms=3.0), row("torch eager", 4.0, batch=8), row("torch eager", 4.0, threads=2),
            row("torch eager", 4.0, network="nin", alone_ms=5.0)]  # fmt: skip
    peers_report.write(held, tmp_path)
    measured: list[tuple[str, int, int]] = []

    def measure(network: str, batch: int, threads: int, folder: Path) -> list[dict[str, Any]]:
        measured.append((network, batch, threads))
        return [row("torch eager", 5.0, network=network, batch=batch, threads=threads)]

    monkeypatch.setattr(bench_peers, "measure", measure)
    monkeypatch.setattr(bench_peers, "own_compiler_cache", nullcontext)
    for expected in (["lenet", "nin"], []):
        measured.clear()
        bench_peers.main(out=tmp_path, off=True)
        assert measured == [(network, 1, 1) for network in expected]
    assert len(peers_report.held(tmp_path)) == 4
