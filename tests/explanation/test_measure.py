"""measure_layers: what it finds, that it checks results, and that it leaves a model as it was."""

import copy
import random
import re

import numpy
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

import fastcnn
from fastcnn import _library, backends, ops
from fastcnn.explanation import layers, measure_layers
from fastcnn.explanation.capture import TensorSpec, capture
from fastcnn.nn.batch_norm import arguments

QUICK = 1e-9  # seconds: the least number of rounds


class Net(nn.Module):
    """Batch norm, dropout, a layer for two shapes, and attributes and input that the forward writes to."""

    def __init__(self, fail=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.frozen = nn.BatchNorm2d(8).eval().requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))
        self.fail, self.runs = fail, 0

    def forward(self, x):
        x.mul_(1.0)
        self.runs += 1
        self.seen = self.seen + 1
        self.register_buffer("late", torch.ones(()))
        x = nn.functional.dropout(torch.relu(self.bn(self.stem(x))), 0.5)
        random.random(), numpy.random.rand()
        x = self.shared(self.shared(x))
        x = self.frozen(self.shared(self.pool(x)))
        if self.fail:
            raise ArithmeticError("on purpose")
        return x


def image(*shape, **kwargs):
    return torch.randn(*(shape or (2, 3, 8, 8)), generator=torch.Generator().manual_seed(0), **kwargs)


def by_name(model, example, **kwargs):
    return {row.name: row for row in measure_layers(model, example, seconds=QUICK, **kwargs)}


def snapshot(model):
    """Everything of a model and of the process that measuring must not change."""
    library = _library.load()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    kind, keys, *rest = numpy.random.get_state()
    return {
        "tensors": [(name, id(t), t._version, t.requires_grad, id(t.grad), t.stride()) for name, t in tensors],
        "grads": [None if p.grad is None else (p.grad.tolist(), p.grad._version) for p in model.parameters()],
        "values": {name: t.detach().flatten().tolist() for name, t in tensors},
        "attributes": {name: {k: id(v) for k, v in vars(m).items()} for name, m in model.named_modules()},
        "hooks": {
            name: {k: list(v) for k, v in vars(m).items() if "hooks" in k and v} for name, m in model.named_modules()
        },
        "training": {name: m.training for name, m in model.named_modules()},
        "random": (torch.get_rng_state().tolist(), random.getstate(), kind, keys.tolist(), rest),
        "modes": (torch.is_grad_enabled(), torch.get_num_threads()),
        "switches": [library.fastcnn_get_switch(name) for name in library.fastcnn_switches().split()],
    }


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_measuring_leaves_the_model_and_the_process_as_they_were(training, fail):
    model = Net(fail).train(training)
    model.frozen.eval()
    called = []
    for module in model.modules():
        module.register_forward_pre_hook(lambda *args: called.append("pre"))
        module.register_forward_hook(lambda *args, **kwargs: called.append("forward"), with_kwargs=True)
        module.register_full_backward_hook(lambda *args: called.append("backward"))
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    model.stem.weight.register_hook(lambda grad: called.append("gradient"))
    example = image()
    before, written = snapshot(model), example._version
    backends.winograd(False)
    before["switches"] = snapshot(model)["switches"]
    if fail:
        with pytest.raises(ArithmeticError, match="on purpose"):
            measure_layers(model, example, seconds=QUICK)
    else:
        rows = measure_layers(model, example, seconds=QUICK)
        assert all(row.measured and not row.mismatch for row in rows)
    after = snapshot(model)
    for part in before:
        assert before[part] == after[part], part
    assert not called and example._version == written and torch.equal(example, image())
    if not fail:
        model(image())
        assert called  # the hooks are still there


def test_rows_are_calls_in_order_with_a_row_for_each_shape():
    rows = measure_layers(Net().eval(), image(), seconds=QUICK)
    assert [(row.name, row.kind, row.shape, row.calls) for row in rows] == [
        ("stem", "Conv2d", (2, 3, 8, 8), 1),
        ("bn", "BatchNorm2d", (2, 8, 8, 8), 1),
        ("shared", "Conv2d", (2, 8, 8, 8), 2),
        ("pool", "MaxPool2d", (2, 8, 8, 8), 1),
        ("shared", "Conv2d", (2, 8, 4, 4), 1),
        ("frozen", "BatchNorm2d", (2, 8, 4, 4), 1),
    ]
    for row in rows:
        assert row.dtype == torch.float32 and row.kernel and row.why and not row.mismatch
        assert row.ours_ms > 0 < row.torch_ms and row.ours_backward_ms == row.torch_backward_ms == 0
        assert row.backward_kernel == "" and row.ratio == row.torch_ms / row.ours_ms
    # channels_last weights make everything after the stem channels_last, as in a converted model.
    assert [row.layout for row in rows] == ["contiguous"] + ["channels_last"] * 5
    assert [row.flop for row in rows[:2]] == [2 * 2 * 8 * 8 * 8 * 3 * 9, 0]


def test_backward_is_measured_in_training_or_when_asked_for():
    for rows in (by_name(Net().train(), image()), by_name(Net().eval(), image(), grad=True)):
        for row in rows.values():
            assert row.ours_backward_ms > 0 < row.torch_backward_ms and row.backward_kernel and not row.mismatch
            assert row.ours_total_ms == row.ours_ms + row.ours_backward_ms
    assert by_name(Net().train(), image())["bn"].kernel == "batch_norm_stats + batch_norm_apply"
    assert by_name(Net().eval(), image(), grad=True)["bn"].kernel == "batch_norm_apply"
    assert by_name(Net().train(), image(), grad=False)["bn"].ours_backward_ms == 0


def test_only_what_needs_a_gradient_in_the_model_gets_one():
    model = Net().train()
    model.shared.weight.requires_grad_(False)
    calls = {call.name: call for call in capture(model, image(), grad=True)}
    assert not calls["stem"].inputs[0].requires_grad and calls["bn"].inputs[0].requires_grad
    rows = by_name(model, image())
    assert rows["stem"].flop == 2 * by_name(model, image(), grad=False)["stem"].flop  # no gradient of the image
    assert "grad_weight" not in rows["shared"].backward_kernel


def with_padding(**kwargs):
    return nn.Conv2d(4, 8, 3, **kwargs)


LAYERS = [
    with_padding(padding="same"),
    with_padding(padding="valid", bias=False),
    with_padding(padding=2, padding_mode="circular", dilation=2),
    nn.Conv2d(4, 8, (2, 4), padding="same"),
    nn.Conv2d(4, 8, 3, stride=2, groups=2),
    nn.Conv2d(4, 4, 3, groups=4),
    fastcnn.Conv2d(4, 8, 1, activation="relu"),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    fastcnn.MaxPool2d(2, return_indices=True),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AdaptiveAvgPool2d((None, 3)),
    fastcnn.GlobalAvgPool2d(),
    nn.BatchNorm2d(4, affine=False),
    nn.BatchNorm2d(4, track_running_stats=False),
    nn.BatchNorm2d(4, momentum=None),
    fastcnn.BatchNormReLU2d(4),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_both_sides_of_a_layer_agree(layer, dtype):
    (row,) = measure_layers(nn.Sequential(layer).to(dtype).train(), image(2, 4, 9, 9, dtype=dtype), seconds=QUICK)
    assert row.measured and row.mismatch == "" and row.dtype == dtype


def test_batch_norm_1d_concat_and_dense_block_agree():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.concat = fastcnn.Concat()
            self.block = fastcnn.DenseBlock(2, 8, 4)
            self.bn = nn.BatchNorm1d(16)

        def forward(self, x):
            return self.bn(self.block(self.concat([x, x])).mean((2, 3)))

    for training in (False, True):
        rows = by_name(Joined().train(training), image(2, 4, 8, 8))
        assert list(rows) == ["concat", "block", "bn"]
        assert all(row.measured and not row.mismatch for row in rows.values())
    model = Joined()
    model.block.net[0][0].register_forward_hook(lambda *args: None)  # so its layers run one by one
    inside = ["block.net.0.0", "block.net.0.2", "block.concat"]
    assert list(by_name(model, image(2, 4, 8, 8)))[1:4] == inside


def test_a_wrong_result_is_reported(monkeypatch):
    pool = ops.max_pool2d
    monkeypatch.setattr(ops, "max_pool2d", lambda *args: pool(*args) + 0.01)
    row = by_name(nn.Sequential(nn.MaxPool2d(2)), image())["0"]
    assert "output differs from torch's by" in row.mismatch and row.measured
    monkeypatch.setattr(ops, "max_pool2d", lambda *args: pool(*args)[..., :1])
    assert "output (2, 3, 4, 1)" in by_name(nn.Sequential(nn.MaxPool2d(2)), image())["0"].mismatch
    relu = ops.batch_norm_relu

    def wrong_gradient(*args, **kwargs):
        output = relu(*args, **kwargs)
        return output.detach() + 2 * (output - output.detach())

    monkeypatch.setattr(ops, "batch_norm_relu", wrong_gradient)
    row = by_name(nn.Sequential(nn.Conv2d(3, 3, 1), fastcnn.BatchNormReLU2d(3)), image())["1"]
    assert "gradient differs from torch's by" in row.mismatch


def test_a_batch_norm_that_a_block_fuses_is_measured_as_what_runs():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = fastcnn.BatchNorm2d(4), fastcnn.BatchNorm2d(4)

        def forward(self, x):
            for norm, residual in ((self.first, None), (self.second, x)):
                assert not norm._forward_pre_hooks  # a hook would make the block call the module
                norm._check_input_dim(x)
                x = ops.batch_norm_relu(x, *arguments(norm), residual)
            return x

    for training in (False, True):
        rows = by_name(Block().train(training), image(2, 4, 5, 5))
        assert [(row.name, row.kind, row.mismatch) for row in rows.values()] == [
            ("first", "BatchNormReLU2d", ""),
            ("second", "BatchNormReLU2d", ""),
        ]
    assert [len(call.inputs) for call in capture(Block(), image(2, 4, 5, 5), False)] == [1, 2]


def test_layers_with_a_forward_of_their_own_are_listed_and_not_measured():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    class Renamed(nn.Conv2d):
        pass

    patched = nn.MaxPool2d(2)
    patched.forward = lambda x: x
    rows = by_name(nn.Sequential(Scaled(3, 3, 1), Renamed(3, 3, 1), patched), image())
    assert [row.measured for row in rows.values()] == [False, True, False]
    assert rows["0"].why == "left torch's: Scaled has a forward of its own" and rows["0"].kernel == ""


@pytest.mark.parametrize(
    ("switch", "layer", "why"),
    [
        (None, nn.Conv2d(3, 8, 3, padding=1), "fastest by the rule, before"),
        (lambda: backends.conv2d_algorithm("direct"), nn.Conv2d(3, 8, 3), "forced: conv2d_algorithm('direct')"),
        (lambda: backends.conv2d_algorithm("winograd_f4x3"), nn.Conv2d(3, 8, 1), "forced: .*which does not apply here"),
        (lambda: backends.conv2d_algorithm("aten"), nn.Conv2d(3, 8, 1), "forced: conv2d_algorithm('aten')"),
        (lambda: backends.autotune(True), nn.Conv2d(3, 8, 3, padding=1), "autotuned: "),
        (lambda: backends.fallback(False), nn.Conv2d(3, 8, 3, stride=2), "the only kernel allowed here, under fall"),
        (lambda: backends.winograd(False), nn.Conv2d(3, 8, 3), "under winograd(False)"),
        (lambda: backends.batch_invariant(True), nn.Conv2d(3, 8, 3), "under batch_invariant(True)"),
        (None, nn.Conv2d(3, 3, 3, groups=3), "depthwise: a kernel of its own"),
        (None, nn.BatchNorm2d(3), "our kernel, whatever the size"),
        (None, fastcnn.BatchNormReLU2d(3), "fused: "),
    ],
)  # fmt: skip
def test_why_says_what_decided(switch, layer, why):
    with switch() if switch else backends.winograd(True):
        found = by_name(nn.Sequential(layer).eval(), image())["0"].why
    assert re.search(re.escape(why).replace(r"\.\*", ".*"), found), found


def test_why_names_torchs_own_where_the_rule_takes_it():
    layer, example = nn.Conv2d(512, 512, 3, padding=1), image(1, 512, 2, 2)
    with backends.conv2d_algorithm("aten"):
        assert by_name(nn.Sequential(layer), example, grad=False)["0"].kernel == "aten"
    row = by_name(nn.Sequential(nn.Conv2d(320, 1280, 1)).eval(), image(1, 320, 2, 2))["0"]
    chosen = "torch's own is faster by the rule; of ours" if row.kernel == "aten" else "fastest by the rule, before"
    assert row.why.startswith(chosen)


def test_why_of_dtypes_and_cases_that_are_not_covered():
    assert by_name(nn.Sequential(nn.Conv2d(3, 4, 1)).double(), image(dtype=torch.float64))["0"].why == (
        "float64 has direct kernels only"
    )
    example = torch.randint(0, 9, (1, 3, 8, 8))
    row = by_name(nn.Sequential(nn.MaxPool2d(2)).eval(), example)["0"]
    assert (row.kernel, row.why, row.mismatch) == ("aten", "not covered: torch.int64", "")
    row = by_name(nn.Sequential(nn.Conv2d(3, 4, 1, dtype=torch.complex64)).eval(), image(dtype=torch.complex64))["0"]
    assert row.why == "not covered: torch.complex64" and row.mismatch == ""
    with backends.fallback(False):
        row = by_name(nn.Sequential(nn.MaxPool2d(2)).eval(), example)["0"]
    assert not row.measured and "fallback is off" in row.why


def test_example_may_be_a_tuple_or_a_dict_and_modules_may_be_compiled():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.AvgPool2d(2)

        def forward(self, x, y=None, scale=1.0):
            return self.pool(x + y) * scale

    for example in ((image(), image(), 2.0), [image(), image()], {"y": image(), "x": image()}):
        assert by_name(Sum(), example)["pool"].measured
    assert next(iter(by_name(torch.compile(Net().eval()), image()))) == "stem"
    empty = by_name(nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2)), image(0, 3, 8, 8))
    assert all(row.mismatch == "" for row in empty.values())


def test_models_without_known_layers_give_no_rows():
    assert measure_layers(nn.Sequential(), image()) == []
    assert measure_layers(nn.Linear(8, 2), image()) == []


@pytest.mark.parametrize(
    ("model", "example", "error", "message"),
    [
        ("resnet50", image(), TypeError, "expected model to be a torch.nn.Module, but got str"),
        (Net, image(), TypeError, "expected model to be a torch.nn.Module, but got type"),
        (Net(), 224, TypeError, "a tuple or dict of the model's arguments, but got int"),
        (Net(), None, TypeError, "but got NoneType"),
        (torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1))), image(), TypeError, "TorchScript is not supported"),
        (nn.Sequential(nn.LazyConv2d(4, 1)), image(), ValueError, "0.weight is not initialized"),
        (nn.Conv2d(3, 3, 1, device="meta"), image(), NotImplementedError, "weight is on the meta device"),
        (nn.Conv2d(3, 3, 1), image().to("meta"), NotImplementedError, "example is on the meta device"),
        (nn.Conv2d(4, 3, 1), image(), RuntimeError, "to have 4 channels"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_input_raises(model, example, error, message):
    with pytest.raises(error, match=message):
        measure_layers(model, example)
    with pytest.raises(error, match=message):
        fastcnn.explain(model, example)


def test_seconds_must_be_positive():
    with pytest.raises(ValueError, match="expected seconds to be positive, but got 0"):
        measure_layers(Net(), image(), seconds=0)


@pytest.mark.parametrize(
    ("tensor", "layout"),
    [
        (torch.zeros(2, 3, 4, 4), "contiguous"),
        (torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last), "channels_last"),
        (torch.zeros(2, 6, 4, 4).to(memory_format=torch.channels_last)[:, :3], "strided"),
        (torch.zeros(2, 3, 4, 1).expand(2, 3, 4, 4), "strided"),
        (torch.zeros(5, dtype=torch.int32), "contiguous"),
    ],
)
def test_inputs_are_drawn_like_those_that_were_seen(tensor, layout):
    spec = TensorSpec.of(tensor)
    drawn = spec.draw(torch.Generator().manual_seed(0))
    assert spec.layout == layout and drawn.shape == tensor.shape and drawn.dtype == tensor.dtype
    assert 0 in tensor.stride() or drawn.stride() == tensor.stride()
    assert drawn.unique().numel() > 1


def test_layers_share_the_models_memory_and_nothing_else():
    model = copy.deepcopy(Net())
    layer = layers.take_out(model.bn, "BatchNorm2d")
    assert layer.parameters[0].data_ptr() == model.bn.weight.data_ptr() and layer.parameters[0].is_leaf
    layer.theirs([image(2, 8, 4, 4)], layer.parameters)
    assert model.bn.running_mean.abs().max() == 0 and model.bn.num_batches_tracked == 0


def test_measuring_does_not_call_hooks_of_all_modules():
    called, model = [], fastcnn.convert(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())).eval()
    handles = [
        torch_module.register_module_forward_hook(lambda *args: called.append("forward"), always_call=True),
        torch_module.register_module_forward_pre_hook(lambda *args: called.append("pre")),
        torch_module.register_module_full_backward_hook(lambda *args: called.append("backward")),
    ]
    try:
        rows = measure_layers(model, image(), seconds=QUICK)
        assert [row.kind for row in rows] == ["BatchNormReLU2d"]
        assert not called
        model(image())
        assert set(called) == {"pre", "forward"}
    finally:
        for handle in handles:
            handle.remove()
    assert not torch_module._has_any_global_hook()


class Positive(nn.Module):
    def forward(self, x):
        return x.abs()


@pytest.mark.parametrize("measure", [measure_layers, fastcnn.explain])
def test_measuring_leaves_what_computes_a_weight_as_it_was(measure):
    """Spectral normalisation's weight takes a step of its power iteration whenever it is read in training."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).train()
    nn.utils.parametrizations.spectral_norm(model[0])
    nn.utils.parametrize.register_parametrization(model[1], "weight", Positive())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = measure(model, image(), seconds=QUICK)
    assert [row.measured for row in getattr(rows, "rows", rows)] == [True, True]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    fastcnn.convert(model, image())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_model_that_takes_gradients_itself_is_measured():
    class Forces(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            x = x.requires_grad_()
            (gradient,) = torch.autograd.grad(self.conv(x).square().sum(), x, create_graph=True)
            return gradient

    (row,) = measure_layers(Forces().train(), image(), seconds=QUICK)
    assert row.measured and row.name == "conv"
