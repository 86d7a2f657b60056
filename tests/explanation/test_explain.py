"""explain: the table and the page, of a model as it is and as it would be converted."""

import threading
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import fastcnn
from fastcnn.explanation import Explanation, LayerTime


def torch_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)).eval()


def fast_net():
    return nn.Sequential(fastcnn.Conv2d(3, 8, 3), fastcnn.BatchNormReLU2d(8), fastcnn.MaxPool2d(2))


def image():
    return torch.randn(2, 3, 8, 8)


class Page(HTMLParser):
    """Checks that tags are closed, and collects the table's texts by row and whatever refers to something outside."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.references = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        self.references += [tag] if tag in ("script", "link", "img", "iframe") else []
        self.references += [name for name, _ in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def test_explain_prints_the_table_and_returns_it(capsys):
    model = fast_net()
    found = fastcnn.explain(model, image(), seconds=0.01, title="small")
    printed = capsys.readouterr().out
    assert printed == f"{found}\n" and isinstance(found, Explanation)
    lines = printed.splitlines()
    assert lines[0] == "small"
    assert "input [2, 3, 8, 8] float32; training mode, forward and backward" in lines[1]
    assert f"{torch.get_num_threads()} thread" in lines[2] and f"torch {torch.__version__}" in lines[2]
    header = next(i for i, line in enumerate(lines) if line.startswith("layer "))
    columns = ["ours fwd ms", "torch fwd ms", "ours bwd ms", "torch bwd ms", "ratio", "MFLOP", "GFLOP/s", "why"]
    assert all(column in lines[header] for column in columns)
    assert [line.split()[:2] for line in lines[header + 2 : header + 5]] == [
        ["0", "Conv2d"],
        ["1", "BatchNormReLU2d"],
        ["2", "MaxPool2d"],
    ]
    assert lines[header + 6].split()[:2] == ["total", "3"]
    assert found.ours_ms == pytest.approx(sum(row.ours_total_ms for row in found.rows))
    assert found.torch_ms == pytest.approx(sum(row.torch_total_ms for row in found.rows))
    assert found.flop == found.rows[0].flop > 0


def test_evaluation_mode_has_no_backward_columns(capsys):
    found = fastcnn.explain(fast_net().eval(), image(), seconds=0.01)
    assert "bwd" not in str(found) and "evaluation mode, forward;" in str(found) and not found.grad
    assert "bwd" in str(fastcnn.explain(fast_net().eval(), image(), grad=True, seconds=0.01))


def test_page_is_one_well_formed_file_that_needs_no_other():
    found = fastcnn.explain(fast_net(), image(), seconds=0.01, title="<b> & co")
    text = found.to_html()
    page = Page(text)
    assert page.references == [] and "url(" not in text and "http" not in text
    assert "&lt;b&gt; &amp; co" in text and "<b>" not in text
    assert [row[:2] for row in page.rows[1:4]] == [["0", "Conv2d"], ["1", "BatchNormReLU2d"], ["2", "MaxPool2d"]]
    assert page.rows[4][0] == "total"


@pytest.mark.parametrize("model", [nn.Sequential(), nn.Linear(8, 2)], ids=["empty", "linear"])
def test_a_model_without_known_layers_says_so(model, capsys):
    found = fastcnn.explain(model, image())
    assert found.rows == [] and (found.ours_ms, found.torch_ms, found.flop) == (0, 0, 0)
    assert "no layer that fastcnn knows was called" in capsys.readouterr().out
    assert "No layer that fastcnn knows was called" in found.to_html() and Page(found.to_html()).rows == []


def test_notes_group_reasons_and_name_what_costs_most():
    def row(name, ours=1.0, theirs=1.0, **kwargs):
        values = {"kernel": "conv2d_direct", "why": "rule", "ours_backward_ms": 0.0, "torch_backward_ms": 0.0}
        values.update(kwargs)
        return LayerTime(
            name, "Conv2d", (1, 3, 8, 8), torch.float32, "channels_last", 1, ours_ms=ours, torch_ms=theirs, **values
        )

    found = Explanation(
        "net",
        [],
        [
            row("a", ours=2.0),
            row("b", ours=9.0, spread=2.0),
            row("c", kernel="aten", why="torch's own is faster by the rule", mismatch="output differs by 1e+00"),
            LayerTime("d", "BatchNorm2d", (1, 3), torch.float32, "contiguous", 1, why="left torch's: X"),
            row("e", theirs=3.0),
            row("f", ours=5.0, spread=2.0),
        ],
        unfused=[("n1", "BatchNorm2d + ReLU", "called twice"), ("n2", "BatchNorm2d + ReLU", "called twice")],
        kept={"e": "torch is faster", "f": "torch is faster", "z": "float8"},
    )
    text = " ".join(str(found).split())
    assert "Results that differ: c: output differs by 1e+00" in text and "1.00!" in text
    assert "Fallbacks to torch's kernels: torch's own is faster by the rule: c" in text
    assert "Left torch's layers: torch is faster: e, f" in text
    assert "Left torch's layers, and not called: float8: z" in text
    assert "Not fused: BatchNorm2d + ReLU: called twice: n1, n2" in text
    assert "Not measured: left torch's: X: d" in text
    assert "2 layers have a ratio below 0.95, and lose 9.00 ms together: b 0.11, a 0.50" in text
    assert "the times of 2 of 5 layers varied by more than 30 %" in text
    assert "5 16.00 7.00 0.44" in text  # the total is of what runs, and leaves out what was not measured
    assert (found.ours_ms, found.torch_ms) == (16.0, 7.0)


@pytest.mark.parametrize("training", [False, True])
def test_explaining_leaves_a_model_as_it_was_and_does_not_call_its_hooks(training):
    model, called, example = torch_net().train(training), [], image()
    random = torch.get_rng_state()
    model[1].register_forward_hook(lambda *args: called.append(args))
    state = {name: (id(t), t._version, t.stride(), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    kinds = [type(module) for module in model.modules()]
    fastcnn.explain(model, example, seconds=0.01)
    assert not called and kinds == [type(module) for module in model.modules()]
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in model.state_dict(keep_vars=True).items():
        *identity, value = state[name]
        assert identity == [id(tensor), tensor._version, tensor.stride()] and torch.equal(value, tensor)


def test_a_model_that_cannot_be_copied_is_explained_all_the_same(capsys):
    model = torch_net()
    model.lock = threading.Lock()
    found = fastcnn.explain(model, image(), seconds=0.01)
    assert [row.name for row in found.rows] == ["0", "1", "3"] and all(row.measured for row in found.rows)


def test_a_model_whose_copy_holds_its_own_modules_is_explained_all_the_same():
    class Shared(nn.Sequential):
        def __deepcopy__(self, memo):
            return self

    model = nn.Sequential(Shared(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), nn.MaxPool2d(2)).eval()
    found = fastcnn.explain(model, image(), seconds=0.01)
    assert "copying the model does not copy its BatchNorm2d, Conv2d, ReLU, Shared" in str(found)
    assert [type(module) for module in model[0]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert all(row.measured for row in found.rows)
