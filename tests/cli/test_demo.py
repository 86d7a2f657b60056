"""The demo, shortened to an epoch, and its verdict; the progress bar."""

import io
import re

import pytest
from rich.console import Console

from fastcnn.cli import console as console_module
from fastcnn.cli import demo as demo_module
from fastcnn.cli import main
from fastcnn.cli.console import Reporter
from fastcnn.train import EpochRecord, History


def ended_with(accuracy):
    return History([EpochRecord(1, 0.1, 0.99, accuracy, 100, 1.0)])


def test_demo_compares_both_kinds_of_layers_and_fails_below_the_accuracy(tmp_path, monkeypatch, capsys):
    lenet = demo_module.NETWORKS["lenet_bn"]
    monkeypatch.setattr(demo_module, "NETWORKS", {"lenet_bn": lenet})
    code = main(["demo", "--epochs", "1", "--threads", "1", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    rows = re.findall(
        r"^ *lenet_bn +28 +(fastcnn|torch) +\d\.\d{3} +0\.\d{3} +(0\.\d{3}) +[\d.]+ +([\d.]+) *$", out, re.M
    )
    assert [row[0] for row in rows] == ["fastcnn", "torch"] and rows[1][2] == "1.00"
    assert code == 1 and all(float(row[1]) < 0.95 for row in rows)  # an epoch is not enough
    assert out.count("is below 0.95") == 2
    assert "lr 0.02, momentum 0.9, batch size 64" in out and "channels_last" in out and "1 thread" in out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("accuracy", "code"), [(0.95, 0), (0.949, 1), (float("nan"), 1)])
def test_demo_verdict_needs_every_run_to_reach_the_accuracy(accuracy, code, capsys):
    reporter = Reporter(console_module.make_console())
    results = {"lenet_bn": {"fastcnn": ended_with(0.99), "torch": ended_with(accuracy)}}
    assert demo_module._judge(results, reporter) == code
    assert ("torch layers" in capsys.readouterr().out) == bool(code)


def test_ratio_is_the_median_over_neighbouring_epochs():
    def history(*seconds):
        return History([EpochRecord(i + 1, 0.1, 0.9, 0.9, 100, second) for i, second in enumerate(seconds)])

    table = console_module.make_table(None, console_module.RESULT_COLUMNS)
    # The machine is three times as busy in the second epoch, and the third catches one of the two only.
    runs = {"fastcnn": history(1.0, 3.0, 8.0, 1.0), "torch": history(2.0, 6.0, 2.0, 2.0)}
    console_module.add_results(table, "net", 28, runs)
    console_module.add_results(table, "net", 28, {"torch": runs["torch"]})
    ratios = [column for column in table.columns if column.header in ("ratio", "quartiles")]
    assert [list(column.cells) for column in ratios] == [["2.00", "1.00", ""], ["1.56 to 2.00", "", ""]]


def progress_output(terminal, quiet=False):
    output = io.StringIO()
    reporter = Reporter(Console(file=output, force_terminal=terminal, width=100), quiet)
    with reporter.progress(200) as bar:
        bar.describe("epoch 1/2")
        bar.advance(100)
        reporter.line("a line [with brackets] that is printed above the bar " + "x" * 80)
        bar.advance(100)
    return output.getvalue()


def test_progress_is_a_bar_with_rate_and_remaining_time_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    output = progress_output(terminal=True)
    assert "epoch 1/2" in output and "100%" in output
    assert "examples/s" in output and "0:00:00" in output


def test_progress_is_plain_lines_elsewhere():
    assert progress_output(terminal=False) == (
        "a line [with brackets] that is printed above the bar " + "x" * 80 + "\n"
    )
    assert progress_output(terminal=True, quiet=True) == ""
