"""Checkpoints: what they hold, that a killed run goes on as if nothing had happened, and what is refused."""

import os
import pickle
import runpy
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from fastcnn.train import CheckpointError, fit, load_checkpoint, save_checkpoint
from fastcnn.train import checkpoint as checkpoint_module
from fastcnn.train.files import write_atomically

TINY_RUN = Path(__file__).with_name("tiny_run.py")
TINY = runpy.run_path(str(TINY_RUN))
run = TINY["run"]


def figures(history):
    return [(r.epoch, r.loss, r.train_accuracy, r.test_accuracy, r.examples) for r in history.epochs]


def assert_same_run(left, right):
    assert figures(left[0]) == figures(right[0])
    for (name, a), (other, b) in zip(left[1].state_dict().items(), right[1].state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b), name


@pytest.fixture(scope="module")
def uninterrupted():
    return run(None, 4)


@pytest.fixture
def saved(tmp_path):
    run(tmp_path / "checkpoint.pt", 1)
    return tmp_path / "checkpoint.pt"


def test_fit_learns_and_is_deterministic(uninterrupted):
    assert_same_run(run(None, 4), uninterrupted)
    losses = [record.loss for record in uninterrupted[0].epochs]
    assert losses[-1] < losses[0]


def test_checkpoint_of_a_run_killed_in_mid_epoch_resumes_to_the_same_weights(tmp_path):
    # All in processes of their own: what ran before in this one may change how torch splits a sum.
    def run_alone(path, *arguments):
        return subprocess.run([sys.executable, str(TINY_RUN), str(path), "4", *arguments]).returncode

    path, whole = tmp_path / "checkpoint.pt", tmp_path / "whole.pt"
    assert run_alone(path, "3", "4") == -signal.SIGKILL
    saved = load_checkpoint(path)
    assert saved["epoch"] == 2 and saved["config"] == {"purpose": "test"}
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
    assert run_alone(path) == run_alone(whole) == 0
    resumed, expected = load_checkpoint(path), load_checkpoint(whole)
    for name, tensor in expected["model"].items():
        assert torch.equal(resumed["model"][name], tensor), name
    for left, right in zip(resumed["history"], expected["history"], strict=True):
        assert {k: v for k, v in left.items() if k != "seconds"} == {k: v for k, v in right.items() if k != "seconds"}


def test_checkpoint_is_there_before_the_first_epoch_is_finished(uninterrupted, tmp_path):
    path = tmp_path / "checkpoint.pt"

    def interrupt(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(path, 4, on_batch=interrupt)
    assert load_checkpoint(path)["epoch"] == 0
    assert_same_run(run(path, 4, resume=True), uninterrupted)


def test_checkpoint_interrupted_while_it_is_written_keeps_the_finished_epoch(uninterrupted, tmp_path, monkeypatch):
    path, save, saves = tmp_path / "checkpoint.pt", torch.save, []

    def interrupted_save(document, file):
        saves.append(document["epoch"])
        if saves == [0, 1, 2]:
            file.write(b"half of the file")
            raise KeyboardInterrupt
        save(document, file)

    monkeypatch.setattr(torch, "save", interrupted_save)
    with pytest.raises(KeyboardInterrupt):
        run(path, 4)
    assert saves == [0, 1, 2, 2] and load_checkpoint(path)["epoch"] == 2
    assert_same_run(run(path, 4, resume=True), uninterrupted)


def test_checkpoint_of_a_finished_run_trains_longer_or_not_at_all(uninterrupted, tmp_path):
    path = tmp_path / "checkpoint.pt"
    run(path, 3)
    assert len(run(path, 2, resume=True)[0].epochs) == 3
    assert_same_run(run(path, 4, resume=True), uninterrupted)


def test_checkpoint_holds_model_optimizer_epoch_history_rng_and_config(saved):
    checkpoint = load_checkpoint(saved)
    assert checkpoint.keys() == {"format", "version", *checkpoint_module.ENTRIES}
    assert checkpoint["epoch"] == 1 and len(checkpoint["history"]) == 1
    assert checkpoint["optimizer"]["state"][0]["momentum_buffer"].shape == (4, 1, 3, 3)
    assert len(checkpoint["rng"]["cpu"]) == 1


def test_checkpoint_cut_anywhere_is_refused_by_name(saved, tmp_path):
    content = saved.read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pt: truncated"):
            load_checkpoint(cut)


def test_checkpoint_with_changed_bytes_is_refused_or_whole(saved, tmp_path):
    content = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        start = next(info.header_offset for info in archive.infolist() if info.filename.endswith("data.pkl"))
    for offset in range(start, start + 400, 37):
        flipped = tmp_path / "flipped.pt"
        flipped.write_bytes(content[:offset] + bytes([content[offset] ^ 0xFF]) + content[offset + 1 :])
        try:
            assert load_checkpoint(flipped)["format"] == checkpoint_module.FORMAT
        except CheckpointError as error:
            assert str(error).startswith(str(flipped))


@pytest.mark.parametrize(
    "content",
    [{"model": {}}, [1, 2], torch.zeros(3), {"format": "another program's checkpoint"}, nn.Linear(1, 1).state_dict()],
    ids=["no format", "list", "tensor", "other format", "state_dict"],
)
def test_checkpoint_of_another_program_is_refused_by_name(content, tmp_path):
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=r"foreign\.pt: not a checkpoint of fastcnn"):
        load_checkpoint(tmp_path / "foreign.pt")


def test_checkpoint_that_is_missing_or_of_another_version_is_refused_by_name(saved):
    with pytest.raises(CheckpointError, match=r"none\.pt: there is no such checkpoint"):
        load_checkpoint(saved.with_name("none.pt"))
    checkpoint = load_checkpoint(saved)
    torch.save({**checkpoint, "version": 99}, saved)
    with pytest.raises(CheckpointError, match="checkpoint version 99, but this fastcnn reads version 1"):
        load_checkpoint(saved)


@pytest.mark.parametrize("entry", sorted(checkpoint_module.ENTRIES))
def test_checkpoint_without_an_entry_is_refused_by_name(entry, saved):
    checkpoint = load_checkpoint(saved)
    del checkpoint[entry]
    with pytest.raises(ValueError, match=entry):
        save_checkpoint(saved, {name: checkpoint[name] for name in checkpoint if name not in ("format", "version")})
    torch.save(checkpoint, saved)
    with pytest.raises(CheckpointError, match=rf"damaged: its entry '{entry}'"):
        load_checkpoint(saved)


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", ["torch.save", "pickle"])
def test_checkpoint_that_would_run_code_is_refused(protocol, tmp_path):
    marker, path = tmp_path / "it ran", tmp_path / "bomb.pt"
    content = {"format": checkpoint_module.FORMAT, "version": 1, "model": Bomb(marker)}
    if protocol == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"bomb\.pt: "):
        load_checkpoint(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()  # it would have


def test_checkpoint_of_another_network_is_refused_and_changes_nothing(saved):
    other = nn.Sequential(nn.Conv2d(1, 5, 3))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    for model, message in (
        (other, r"0\.weight is \[4, 1, 3, 3\] instead of \[5, 1, 3, 3\]"),
        (nn.Linear(2, 2), "has weight"),
    ):
        with pytest.raises(CheckpointError, match=rf"checkpoint\.pt: of another network: .*{message}"):
            fit(model, [], [], optimizer=optimizer, epochs=2, checkpoint=saved, resume=True)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_checkpoint_of_another_optimizer_is_refused(saved):
    model = TINY["network"]()
    optimizer = torch.optim.SGD(model[0].parameters(), 0.1)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: of another optimizer"):
        fit(model, [], [], optimizer=optimizer, epochs=2, checkpoint=saved, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 7}, "1 records of 7 epochs"),
        ({"history": [{"loss": 1.0}]}, "damaged history"),
        ({"rng": {}}, "of 0 processes"),
        ({"rng": {"cpu": [torch.zeros(9, dtype=torch.uint8)] * 2}}, "of 2 processes, but there are 1"),
        ({"rng": {"cpu": ["text"]}}, "no byte tensors"),
    ],
)
def test_checkpoint_that_contradicts_itself_is_refused(change, message, saved):
    torch.save({**load_checkpoint(saved), **change}, saved)
    with pytest.raises(CheckpointError, match=message):
        run(saved, 2, resume=True)


def test_write_atomically_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
