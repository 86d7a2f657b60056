"""`fastcnn explain`: networks by name, the page, and one line for each mistake."""

import importlib
import re
import sys
from types import ModuleType

import pytest
from torch import nn

from fastcnn._machine import version_of
from fastcnn.cli import explain as command
from fastcnn.cli import main
from fastcnn.explanation import Explanation, timing


@pytest.fixture(autouse=True)
def own_folder_and_few_calls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 1e-9)
    monkeypatch.setattr(timing, "ROUNDS", (2, 2))


@pytest.fixture
def collections(monkeypatch):
    """Stand-ins of torchvision and timm, which are large, and not everywhere."""

    def get_model(name, weights, **kwargs):
        assert weights is None and ("init_weights" in kwargs) == (name == "googlenet")
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def create_model(name, pretrained):
        assert not pretrained
        model = nn.Sequential(nn.Conv2d(1, 4, 3))
        model.default_cfg = {"input_size": (1, 20, 20)}
        return model

    torchvision, models, timm = ModuleType("torchvision"), ModuleType("torchvision.models"), ModuleType("timm")
    torchvision.models, models.get_model = models, get_model
    models.list_models = lambda module: ["resnet18", "resnet50", "googlenet"]
    timm.list_models, timm.create_model = lambda: ["resnet18d"], create_model
    for module in (torchvision, models, timm):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def run(capsys, *arguments):
    capsys.readouterr()
    code = main(["explain", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def test_explain_one_of_our_networks_and_write_the_page(capsys, tmp_path):
    page = tmp_path / "folder" / "lenet.html"
    code, out, err = run(capsys, "lenet_bn", "--threads", 1, "--seconds", 0.1, "--html", page)
    assert (code, err) == (0, [])
    assert out[0] == "measuring for some 0.1 seconds" and out[1] == "lenet_bn"
    assert out[2].startswith("input [1, 1, 28, 28] float32; evaluation mode, forward") and " 1 thread," in out[3]
    assert [line.split()[1] for line in out if line[:1].isdigit()][:3] == ["Conv2d", "BatchNorm2d", "AvgPool2d"]
    assert out[-1] == f"page: {page}" and page.read_text().startswith("<!doctype html>")
    assert list(page.parent.iterdir()) == [page]


def test_explain_in_training_with_size_and_batch(capsys):
    code, out, err = run(capsys, "lenet", "--train", "--size", 30, "--batch", 3, "--seconds", 0.1)
    assert (code, err) == (0, [])
    assert out[2].startswith("input [3, 1, 30, 30] float32; training mode, forward and backward")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision:resnet50", "[1, 3, 224, 224]"),
        ("torchvision:googlenet", "[1, 3, 224, 224]"),
        ("timm:resnet18d", "[1, 1, 20, 20]"),
    ],
)
def test_explain_networks_of_other_packages(capsys, collections, name, shape):
    code, out, err = run(capsys, name, "--seconds", 0.1)
    assert (code, err, out[1]) == (0, [], name) and f"input {shape} float32" in out[2]


def test_explain_a_network_of_torchvision_at_a_size(capsys, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = run(capsys, "torchvision:resnet50", "--size", 40, "--seconds", 0.1, "--html", page)
    assert (code, err, out[1]) == (0, [], "torchvision:resnet50") and "input [1, 3, 40, 40] float32" in out[2]
    names = [line.partition(" ")[0] for line in out]
    assert {"conv1", "bn1", "maxpool", "layer1.0.conv1", "layer4.2.bn3", "avgpool"} <= set(names)
    assert "layer4.2.bn3" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet81"], "there is no network 'resnet81': did you mean resnet18?"),
        (["torchvision:resnet51"], "torchvision has no network 'resnet51': did you mean resnet50 or resnet18?"),
        (["timm:x"], "timm has no network 'x': there are 1, such as resnet18d"),
        (["keras:x"], "there is no collection 'keras': expected torchvision:NAME, timm:NAME"),
        (["torchvision:resnet18", "--size", "2"], "torchvision:resnet18 does not take 1 image of 2 pixels: "),
        (["lenet_bn", "--train"], "does not take 1 image of 28 pixels in training: .*a larger --batch has more"),
        (["lenet", "--html", "."], r"--html \.: is a folder; expected the name of a file"),
        (["lenet", "--batch", "0"], r"Invalid value for '--batch'.*\(see fastcnn explain --help\)"),
        (["lenet", "--seconds", "0"], "Invalid value for '--seconds'"),
        ([], "Missing argument '(?i:network)'"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(capsys, collections, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 2 and len(err) == 1 and err[0].startswith("fastcnn: ")
    assert re.search(message, err[0]), err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("operator torchvision::roi_pool does not exist\nmore"),
            "torchvision cannot be imported (operator torchvision::roi_pool does not exist): torchvision ",
        ),
        (ModuleNotFoundError("No module named 'torchvision'", name="torchvision"), "torchvision is not installed: pip"),
        (ModuleNotFoundError("No module named 'PIL'", name="PIL"), "torchvision cannot be imported: No module named"),
    ],
)
def test_a_package_that_cannot_be_imported_is_one_line(capsys, monkeypatch, error, message):
    import_module = importlib.import_module

    def fail(name):
        if name.startswith("torchvision"):
            raise error
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    code, out, err = run(capsys, "torchvision:resnet18")
    assert (code, out) == (2, []) and len(err) == 1 and err[0].startswith(f"fastcnn: {message}")
    if isinstance(error, RuntimeError):
        assert f"and torch {version_of('torch')} are probably not built for each other" in err[0]


def test_a_page_that_cannot_be_written_leaves_the_old_one(capsys, monkeypatch, tmp_path):
    page = tmp_path / "old.html"
    page.write_text("old")

    def fail(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Explanation, "to_html", fail)
    assert run(capsys, "lenet", "--seconds", 0.1, "--html", page)[0] == 130
    assert page.read_text() == "old" and list(tmp_path.iterdir()) == [page]


def test_a_bug_is_no_mistake_of_the_users(capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr(command, "explain", fail)
    with pytest.raises(KeyError, match="a bug"):
        run(capsys, "lenet")
