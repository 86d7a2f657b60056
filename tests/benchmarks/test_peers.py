"""The comparison with other ways to run networks: what its report says of the measurements."""

from __future__ import annotations

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
    rows = [row("torch eager", 4.0), row("ONNX Runtime", 3.0, alone_ms=2.0), failed, row("fastcnn converted", 1.5)]
    folder = peers_report.write(rows, tmp_path)
    text = (folder / "report.md").read_text()
    assert "| lenet | ONNX Runtime | 1 | 1 | 4 | 3 | failed | 1.5 | 2.00 |" in text
    assert "| lenet | OpenVINO | failed: no such operator |" in text
    assert "| 3 to 6 | 2 ! | 10 |" in text and "| 4 to 8 | 4 | 10 |" in text
    assert "fastcnn converted, batch 1, 1 threads: the best rival's time over ours, geometric mean 2.00" in text
    assert "<img" in (folder / "index.html").read_text()


def test_peers_report_keeps_other_networks_of_the_same_versions(tmp_path: Path, monkeypatch: Any) -> None:
    peers_report.write([row("torch eager", 4.0, network="resnet18"), row("torch eager", 2.0)], tmp_path)
    folder = peers_report.write([row("torch eager", 3.0, date="2026-01-03")], tmp_path)
    text = (folder / "report.md").read_text()
    assert text.index("| lenet | torch eager | 1 | 1 | 3 |") < text.index("| resnet18 | torch eager | 1 | 1 | 4 |")
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


@pytest.mark.parametrize("peer", ["torch eager", "torch channels_last", "fastcnn converted"])
def test_peers_of_torch_compute_the_network(peer: str, tmp_path: Path) -> None:
    images, expected = peers.images("lenet", 2), peers.truth("lenet", 2)
    with peers.threads_of_torch(1):
        made = peers.build(peer, "lenet", 2, 1, tmp_path / "unused.onnx")
        bench_peers.check(peer, made.run(images), expected)
    layout = "NCHW" if peer == "torch eager" else "channels_last"
    assert made.facts == f"1 threads, torch.float32 at precision highest, {layout}"
