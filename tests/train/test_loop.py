"""The loops, the history and the curves."""

import json
import math
import sys

import pytest
import torch
from torch import nn

from fastcnn.data import MissingExtraError
from fastcnn.train import EpochRecord, History, evaluate_accuracy, fit, save_curves, train_epoch


def batches(count=10, size=4):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = torch.rand(count, 1, 4, 4, generator=generator)
    return [(images[i : i + size], labels[i : i + size]) for i in range(0, count, size)]


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def test_train_epoch_takes_the_steps_that_one_would_write_by_hand():
    model, expected = linear(), linear()
    result = train_epoch(model, batches(), nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.5))
    optimizer, losses, correct = torch.optim.SGD(expected.parameters(), 0.5), [], 0
    for images, labels in batches():
        scores = expected(images)
        loss = nn.functional.cross_entropy(scores, labels)
        losses.append(loss.item() * len(labels))
        correct += (scores.argmax(1) == labels).sum().item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert result.loss == pytest.approx(sum(losses) / 10, rel=1e-12)
    assert result.accuracy == correct / 10 and result.examples == 10 and result.seconds > 0


def test_train_epoch_reports_every_batch_and_trains_in_training_mode():
    counts, modes = [], []
    model = linear().eval()
    model.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train_epoch(model, batches(), nn.CrossEntropyLoss(), optimizer, on_batch=counts.append)
    assert counts == [4, 4, 2] and modes == [True] * 3


def test_evaluate_accuracy_counts_in_evaluation_mode_without_gradients():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.999), nn.Linear(16, 3))
    nn.init.zeros_(model[2].weight)
    model[2].bias.data = torch.tensor([0.0, 1.0, 0.0])
    assert evaluate_accuracy(model, batches()) == 0.3  # three of ten labels are 1
    assert model.training and model[2].weight.grad is None
    model.eval()
    evaluate_accuracy(model, batches())
    assert not model.training


def test_fit_tells_of_each_epoch_and_returns_all():
    model, told = linear(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    history = fit(model, batches(), batches(), optimizer=optimizer, epochs=3, on_epoch=told.append)
    assert [record.epoch for record in told] == [1, 2, 3] and history.epochs == told
    assert history.epochs[-1].test_accuracy == evaluate_accuracy(model, batches())


def record(epoch, seconds, loss=1.0):
    return EpochRecord(epoch, loss, 0.5, 0.25, examples=100, seconds=seconds)


def test_history_rates_are_over_all_epochs_and_their_median():
    history = History([record(1, 4.0), record(2, 1.0), record(3, 2.0)])
    assert history.examples_per_second == 300 / 7
    assert history.median_examples_per_second == 50
    assert math.isnan(History().examples_per_second) and math.isnan(History().median_examples_per_second)
    assert History.from_list(history.to_list()) == history


def test_history_json_is_valid_even_for_a_loss_that_is_not_a_number(tmp_path):
    History([record(1, 4.0, math.nan)]).save(tmp_path / "history.json", {"settings": {"lr": 0.1}})
    document = json.loads((tmp_path / "history.json").read_text(), parse_constant=pytest.fail)
    assert document["settings"] == {"lr": 0.1} and document["examples_per_second"] == 25
    assert document["epochs"][0]["loss"] is None and document["epochs"][0]["examples_per_second"] == 25


def test_curves_are_a_png_and_open_no_window(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    history = History([record(1, 1.0), record(2, 1.0, math.nan)])
    save_curves(tmp_path / "curves.png", {"one": {"fastcnn": history, "torch": history}, "two": {"torch": history}})
    content = (tmp_path / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000
    assert "matplotlib.pyplot" not in sys.modules


def test_curves_without_matplotlib_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastcnn\[train\]'"):
        save_curves(tmp_path / "curves.png", {})
