"""The command line: options, files, lines, errors; training with torch's layers where the layers do not matter."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from fastcnn.cli import main
from fastcnn.cli.app import app
from fastcnn.cli.info import PUBLIC_OPS, by_op, registered_ops
from fastcnn.models import REGISTRY
from fastcnn.train import load_checkpoint

SMALL = ["train", "lenet_bn", "--impl", "torch", "--epochs", "1", "--batch-size", "100", "--threads", "1"]

OPTIONS = ["lr", "batch-size", "epochs", "resize", "optimizer", "momentum", "weight-decay", "recipe", "device", "seed"]
OPTIONS += ["threads", "impl", "out", "resume", "augment", "data", "data-root"]


@pytest.fixture(autouse=True)
def own_folder_and_threads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(capsys, *arguments):
    """Run the command; return its exit code and the lines of stdout and of stderr."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def history(folder):
    return json.loads((folder / "history.json").read_text())


def test_help_lists_the_commands():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("train", "demo", "models", "explain", "info"):
        assert re.search(rf"\b{command}\b", result.output)


def test_train_help_names_every_option():
    result = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"})
    for option in OPTIONS:
        assert f"--{option} " in result.output


def test_train_writes_history_curves_and_checkpoint_and_resumes(capsys, tmp_path):
    code, out, err = run(capsys, *SMALL, "--out", "a", "--seed", 3)
    assert (code, err) == (0, [])
    assert re.search(
        r"lenet_bn, torch layers, digits at 28 pixels, sgd, lr 1, batch size 100, 1 epochs, seed 3", out[0]
    )
    assert re.fullmatch(
        r"torch  epoch 1/1  loss \d\.\d{3}  train acc 0\.\d{3}  test acc 0\.\d{3}  \d+\.\d examples/s", out[1]
    )
    assert any(line.startswith("device: cpu (") and "1 thread" in line for line in out)
    assert (tmp_path / "a" / "curves.png").read_bytes().startswith(b"\x89PNG")
    first = history(tmp_path / "a")
    assert first["settings"]["seed"] == 3 and first["settings"]["layers"] == "torch"
    assert first["epochs"][0]["examples"] == 4000 and first["epochs"][0]["train_accuracy"] > 0.3

    # Options that are not given are the resumed run's own.
    code, out, err = run(capsys, "train", "lenet_bn", "--impl", "torch", "--out", "a", "--resume", "--epochs", 2)
    assert (code, err) == (0, [])
    assert "batch size 100" in out[0] and "seed 3" in out[0] and " epoch 2/2 " in out[1]
    assert history(tmp_path / "a")["epochs"][0] == first["epochs"][0]
    assert load_checkpoint(tmp_path / "a" / "checkpoint.pt")["epoch"] == 2

    code, _, err = run(capsys, *SMALL, "--out", "a")
    assert code == 2 and len(err) == 1
    assert err[0].startswith("fastcnn: a/checkpoint.pt exists: --resume goes on with that run, --overwrite ")
    for option, saved, asked in (("--lr", 1.0, 0.5), ("--seed", 3, 4), ("--recipe", "sgd", "adam")):
        code, _, err = run(capsys, *SMALL[:4], "--out", "a", "--resume", option, asked)
        assert (code, err) == (2, [f"fastcnn: --resume continues a run with {option} {saved}, not {asked}"])
    code, _, err = run(capsys, "train", "lenet", "--impl", "torch", "--out", "a", "--resume")
    assert (code, err) == (2, ["fastcnn: --resume continues a run with the network lenet_bn, not lenet"])
    code, _, err = run(capsys, "train", "lenet_bn", "--impl", "fastcnn", "--out", "a", "--resume")
    assert (code, err) == (2, ["fastcnn: --resume continues a run with --impl torch, not fastcnn"])

    (tmp_path / "a" / "checkpoint.pt").write_bytes(b"PK\x03\x04 not any more")
    code, _, err = run(capsys, *SMALL, "--out", "a", "--resume")
    assert code == 2 and len(err) == 1 and err[0].startswith("fastcnn: a/checkpoint.pt: truncated")


def test_train_is_reproducible_by_seed(capsys, tmp_path):
    losses = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(capsys, *SMALL, "--out", folder, "--seed", seed)[0] == 0
        losses.append(history(tmp_path / folder)["epochs"][0]["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_train_both_starts_from_the_same_weights_and_batches(capsys, tmp_path):
    arguments = ["train", "lenet_bn", "--impl", "both", "--epochs", 1, "--lr", 0.1, "--batch-size", 100, "--out", "r"]
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, [])
    figures = {layers: history(tmp_path / "r" / layers)["epochs"][0] for layers in ("fastcnn", "torch")}
    # The same arithmetic in another order; 40 steps from the same point let it grow, but not far.
    assert figures["fastcnn"]["loss"] == pytest.approx(figures["torch"]["loss"], rel=1e-2)
    rows = [line.split() for line in out if line.strip().startswith("lenet_bn  ")]
    assert [row[2] for row in rows] == ["fastcnn", "torch"] and rows[1][-1] == "1.00"
    rates = [float(row[-2]) for row in rows]
    assert float(rows[0][-1]) == pytest.approx(rates[0] / rates[1], abs=0.01)  # of one epoch


def test_train_with_adam_and_weight_decay(capsys, tmp_path):
    options = ["--optimizer", "adam", "--lr", "0.003", "--weight-decay", "0.0001", "--no-augment"]
    assert run(capsys, *SMALL, *options, "--out", "a")[0] == 0
    group = load_checkpoint(tmp_path / "a" / "checkpoint.pt")["optimizer"]["param_groups"][0]
    assert (group["lr"], group["weight_decay"]) == (0.003, 0.0001) and "betas" in group


MISTAKES = {
    "unknown network": (["train", "lenat"], "there is no network 'lenat': did you mean lenet?"),
    "nothing like it": (["models", "zzz"], "there is no network 'zzz': there are lenet, lenet_bn, "),
    "unknown option": (["train", "lenet", "--bogus"], "--bogus"),
    "unknown command": (["trian"], "trian"),
    "no network": (["train"], "(?i)missing argument.*fastcnn train --help"),
    "no number": (["train", "lenet", "--lr", "fast"], "--lr"),
    "negative": (["train", "lenet", "--lr", "-1"], "--lr"),
    "unknown data": (["train", "lenet", "--data", "cats"], "--data"),
    "no recipe": (["train", "lenet", "--recipe", "adam"], "lenet has no recipe 'adam', only sgd"),
    "momentum for Adam": (["train", "lenet", "--optimizer", "adam", "--momentum", "0.9"], "--momentum goes with"),
    "too small": (["train", "alexnet", "--resize", "28"], "alexnet does not take images of 28 pixels"),
    "wrong size": (["train", "lenet", "--resize", "40"], "lenet does not take images of 40 pixels"),
    "one image left": (["train", "lenet_bn", "--batch-size", "3"], "--batch-size 3 leaves one image"),
    "no such device": (["train", "lenet", "--device", "gpu"], "--device: there is no device 'gpu'"),
    "other device": (["train", "lenet", "--device", "meta"], "--device: expected cpu or cuda"),
    "no checkpoint": (["train", "lenet", "--resume"], "runs/lenet/checkpoint.pt: there is no such checkpoint"),
    "both ways": (["train", "lenet", "--resume", "--overwrite"], "give one of them"),
    "shapes too small": (["models", "vgg11", "--resize", "8"], "vgg11 does not take images of 8 pixels"),
    "no data": (
        ["train", "lenet", "--data", "fashion-mnist", "--data-root", "void"],
        "Fashion-MNIST: put train-images",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_ends_in_one_line_and_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == [] and len(err) == 1
    assert err[0].startswith("fastcnn: ") and re.search(message, err[0])
    assert os.listdir(tmp_path) == []


def test_unwritable_folder_ends_in_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, *SMALL, "--out", "file/run")
    assert code == 2 and len(err) == 1 and "file" in err[0]


def test_cuda_without_a_gpu_ends_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run(capsys, "train", "lenet", "--device", "cuda:1")
    assert code == 2 and err == [f"fastcnn: --device cuda:1: torch {torch.__version__} sees no CUDA device here"]


@pytest.mark.parametrize("module", ["typer", "rich", "matplotlib", "mlxtend"])
def test_missing_extra_is_named_in_one_line(module, capsys, monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == module or name.startswith("fastcnn.cli."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    code, out, err = run(capsys, *SMALL)
    assert code == 2 and out == [] and len(err) == 1
    assert module in err[0] and re.search(r"pip install 'fastcnn\[(train|data)\]'$", err[0])


def test_no_arguments_print_the_help(capsys):
    code, out, err = run(capsys)
    assert code == 0 and "Usage: fastcnn" in "".join(out) and err == []


def test_models_lists_every_network(capsys):
    code, out, _ = run(capsys, "models")
    assert code == 0
    rows = {line.split()[0]: line for line in out if line.split()}
    assert REGISTRY.keys() <= rows.keys()
    assert re.search(r"\b28 +61,706 +0\.8\b", rows["lenet"])  # 2 * (28*28*6*25 + 10*10*16*150 + 48000 + 10080 + 840)


def test_models_prints_the_textbooks_shapes(capsys):
    code, out, _ = run(capsys, "models", "alexnet", "--shapes")
    assert code == 0
    shapes = [line.rpartition("  1 x ")[2].strip() for line in out if "MaxPool2d" in line]
    assert shapes == ["96 x 26 x 26", "256 x 12 x 12", "256 x 5 x 5"]
    assert any("recipe adam" in line and "hidden_layers 1" in line for line in out)


def test_kernels_belong_to_the_op_with_the_longest_name():
    names = ["conv2d", "conv2d_direct", "_max_pool2d_train", "global_avg_pool2d_backward", "sum_rows", "conv2dish"]
    assert {op: kernels for op, kernels in by_op(names).items() if kernels} == {
        "": ["sum_rows", "conv2dish"],
        "conv2d": ["conv2d", "conv2d_direct"],
        "max_pool2d": ["_max_pool2d_train"],
        "adaptive_avg_pool2d": ["global_avg_pool2d_backward"],
    }


def test_info_tells_what_is_there(capsys):
    from fastcnn import _library

    code, out, _ = run(capsys, "info")
    text = "\n".join(out)
    assert code == 0
    assert f"torch running:        {torch.__version__}" in text
    assert f"torch built against:  {_library.build_info()['torch_version']}" in text
    assert re.search(r"CPU capability: +found \w+, used \w+", text)
    assert re.search(r"CUDA library: +\w+", text)
    assert f"{torch.get_num_threads()} threads" in text
    for op in PUBLIC_OPS:
        assert re.search(rf"^ ?{op} +yes ", text, re.MULTILINE), op
    listed = set(re.findall(r"\w+", text))
    assert set(_library.load().fastcnn_kernels().decode().split()) <= listed
    assert not by_op(registered_ops())[""]  # every op of the library has its row


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "fastcnn.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that was started in the background has Ctrl-C ignored, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_interrupt_leaves_a_checkpoint_and_code_130(capsys, tmp_path):
    process = start(*SMALL, "--epochs", "500", "--out", "run")
    lines = [process.stdout.readline(), process.stdout.readline()]  # the headline and the first epoch
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "" and " epoch 1/500 " in lines[1]
    assert "\x1b" not in "".join(lines) + out and "\r" not in out  # no colours, no bar
    done = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["epoch"]
    assert done >= 1
    message = out.splitlines()[-1]
    assert message.startswith(f"interrupted after {done} of 500 epochs; to go on: ")
    command = message.partition("to go on: fastcnn ")[2].split()
    code, out, _ = run(capsys, *command, "--epochs", done + 1)
    assert code == 0 and f" epoch {done + 1}/{done + 1} " in out[1]


def test_torchrun_trains_in_two_processes_and_prints_once(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["lenet", "--impl", "torch", "--epochs", "1", "--batch-size", "100", "--lr", "0.5", "--out", "two"]
    result = subprocess.run(
        [*command, "-m", "fastcnn.cli", "train", *options], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch 1/1") == 1 and "2 processes" in result.stdout
    two = history(tmp_path / "two")
    assert two["processes"] == 2 and two["epochs"][0]["examples"] == 4000
    assert main(["train", *options[:-1], "one", "--threads", "1"]) == 0
    one = history(tmp_path / "one")["epochs"][0]
    assert two["epochs"][0]["loss"] == pytest.approx(one["loss"], rel=1e-5)
