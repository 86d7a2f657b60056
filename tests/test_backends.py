"""The switches: whose they are, how long they hold, what a backward runs under, what torch.compile makes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kernels import capabilities, recorded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastcnn import _library, backends, ops

# For each switch a value other than the default.
VALUES: dict[str, Any] = {
    "fallback": False,
    "winograd": False,
    "autotune": True,
    "batch_invariant": True,
    "memory_cache": False,
    "conv2d_algorithm": "winograd_f2x3",
    "cpu_capability": "baseline",
}


def state() -> dict[str, int]:
    library = _library.load()
    return {name.decode(): library.fastcnn_get_switch(name) for name in library.fastcnn_switches().split()}


def capability() -> str:
    return str(_library.load().fastcnn_cpu_capability().decode())


def switch(name: str) -> Any:
    return getattr(backends, name)(VALUES[name])


def test_every_switch_has_a_function() -> None:
    assert set(state()) == set(VALUES)
    assert _library.load().fastcnn_get_switch(b"no_such_switch") == -1


@pytest.mark.parametrize("name", VALUES)
def test_switch_holds_from_the_call_on_or_for_a_block(name: str) -> None:
    before = state()
    with switch(name):
        inside = state()
        with switch(name):
            pass
        assert state() == inside
    assert state() == before
    changed = {other for other in before if before[other] != inside[other]}
    assert changed == {name}
    with pytest.raises(KeyError), switch(name):
        raise KeyError
    assert state() == before
    switch(name)
    assert state() == inside


@pytest.mark.parametrize("name", VALUES)
def test_switch_can_be_entered_again(name: str) -> None:
    before, kept = state(), switch(name)
    inside = state()
    for _ in range(2):
        with kept:
            assert state() == inside
        assert state() == before


@pytest.mark.parametrize("name", VALUES)
def test_switch_belongs_to_a_thread(name: str) -> None:
    found: list[dict[str, int]] = []
    before = state()

    def other() -> None:
        found.append(state())
        with backends.fallback(False), backends.conv2d_algorithm("direct"):
            found.append(state())

    with switch(name):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert state() != before
    assert found[0] == before
    assert found[1] == {**before, "fallback": 0, "conv2d_algorithm": 1}


def test_cpu_capability_is_lowered_for_a_block() -> None:
    for name in capabilities():
        with backends.cpu_capability(name):
            assert capability() == name
            with backends.cpu_capability("baseline"):
                assert capability() == "baseline"
            assert capability() == name
    assert capability() == capabilities()[-1]


def test_cpu_capability_that_the_machine_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = state()
    monkeypatch.setattr(_library.load(), "fastcnn_cpu_capability_allowed", lambda: b"avx2")
    with pytest.raises(RuntimeError, match="cpu_capability: expected at most 'avx2', but got 'avx512': this CPU has"):
        backends.cpu_capability("avx512")
    with pytest.raises(ValueError, match=r"cpu_capability: expected one of baseline, avx2, avx512, .*but got 'sse9'"):
        backends.cpu_capability("sse9")
    assert state() == before


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


CHANNELS = 32
WEIGHT = (draw(CHANNELS, CHANNELS, 3, 3) / 30).requires_grad_()
STATISTICS = draw(4, CHANNELS).abs()


def conv2d(input: Tensor) -> Tensor:
    return ops.conv2d(input, WEIGHT, padding=1)


def depthwise(input: Tensor) -> Tensor:
    return ops.conv2d(input, WEIGHT[:, :1], padding=1, groups=CHANNELS)


def batch_norm_relu(input: Tensor) -> Tensor:
    return ops.batch_norm_relu(input, None, None, training=True)


def batch_norm_infer(input: Tensor) -> Tensor:
    return ops.batch_norm(input, *STATISTICS)


def dense_block(input: Tensor, training: bool) -> Tensor:
    """Two layers, the second one's convolution from twice the channels."""
    layers = []
    for channels, weight in ((CHANNELS, WEIGHT), (2 * CHANNELS, WEIGHT.repeat(1, 2, 1, 1)[:8])):
        mean, var, scale, shift = STATISTICS.repeat(1, channels // CHANNELS)
        running = (None, None) if training else (mean, var)
        layers.append(ops.DenseLayer(*running, scale, shift, weight, torch.zeros(weight.shape[0])))
    return ops.dense_block(input, layers, training)


def dense_block_train(input: Tensor) -> Tensor:
    return dense_block(input, training=True)


def dense_block_infer(input: Tensor) -> Tensor:
    return dense_block(input, training=False)


ONCE_DIFFERENTIABLE = ("dense_block_train", "dense_block_infer")
OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "conv2d": conv2d,
    "depthwise": depthwise,
    "max_pool2d": lambda x: ops.max_pool2d(x, 3, 2, 1),
    "avg_pool2d": lambda x: ops.avg_pool2d(x, 3, 2, 1),
    "adaptive_avg_pool2d": lambda x: ops.adaptive_avg_pool2d(x, 1),
    "batch_norm_relu": batch_norm_relu,
    "batch_norm": batch_norm_infer,
    "dense_block_train": dense_block_train,
    "dense_block_infer": dense_block_infer,
}


def image() -> Tensor:
    """Large enough for several threads in each op."""
    return draw(8, CHANNELS, 24, 25).to(memory_format=torch.channels_last).requires_grad_()


def gradient(output: Tensor, input: Tensor) -> Tensor:
    return torch.autograd.grad(output, input, draw(*output.shape))[0]


@pytest.mark.parametrize("op", OPS)
def test_ops_obey_cpu_capability_in_every_thread_and_in_the_backward(op: str) -> None:
    input, results = image(), {}
    for name in capabilities():
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with backends.cpu_capability(name), backends.fallback(False):
                output = OPS[op](input)
                inside = gradient(OPS[op](input), input)
            result = (output.detach(), gradient(output, input))
            assert torch.equal(result[1], inside)
            # A worker that took no notice would round its share otherwise.
            assert all(map(torch.equal, result, results.setdefault(name, result)))
    torch.testing.assert_close(results["baseline"], results[capabilities()[-1]], rtol=1e-4, atol=1e-4)
    if len(results) > 1 and op in (
        "conv2d",
        "depthwise",
        "batch_norm_relu",
    ):  # which multiply and add, rounding once or twice
        assert not any(map(torch.equal, results["baseline"], results[capabilities()[-1]]))


class StatesOfBackwards(TorchDispatchMode):
    """The switches in force where backward ops run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastcnn" and "backward" in func.name():
            self.found.append(state())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("op", OPS)
def test_backward_runs_under_its_forwards_switches(op: str, name: str) -> None:
    input, before = image(), state()
    with switch(name):
        inside = state()
        output = OPS[op](input)
    with StatesOfBackwards() as states:
        first = torch.autograd.grad(output.square().sum(), input, create_graph=True)[0]
        assert states.found == [inside]
        if op not in ONCE_DIFFERENTIABLE:
            first.square().sum().backward()
    assert states.found == [inside] * len(states.found)
    assert state() == before


BACKENDS = ("eager", "aot_eager")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def convolutions(input: Tensor, name: str) -> Tensor:
    """One convolution under the switch, one before and one after."""
    output = conv2d(input)
    with switch(name):
        output = conv2d(output)
    return conv2d(output)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", VALUES)
def test_switch_in_a_compiled_function_breaks_the_graph_and_is_in_force(name: str, backend: str) -> None:
    input, before = image().detach(), state()
    expected: list[Tensor] = []
    kernels = recorded(lambda: expected.append(convolutions(input, name)))
    compiled = torch.compile(convolutions, backend=backend)
    for _ in range(2):
        got: list[Tensor] = []
        assert recorded(lambda got=got: got.append(compiled(input, name))) == kernels
        assert torch.equal(got[0], expected[0])
        assert state() == before
    if name in ("winograd", "conv2d_algorithm"):
        assert kernels[0] == kernels[2] != kernels[1]


def set_and_convolve(input: Tensor) -> Tensor:
    backends.conv2d_algorithm("winograd_f2x3")
    return conv2d(input)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", BACKENDS)
def test_switch_called_in_a_compiled_function_holds_afterwards(backend: str) -> None:
    input, compiled = image().detach(), torch.compile(set_and_convolve, backend=backend)
    for _ in range(2):
        with backends.conv2d_algorithm("direct"):
            assert recorded(lambda: compiled(input)) == ["winograd_f2x3"]
            assert recorded(lambda: conv2d(input)) == ["winograd_f2x3"]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", VALUES)
def test_switch_in_a_whole_graph_is_refused_by_name(name: str, backend: str) -> None:
    before = state()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=rf"fastcnn\.backends\.{name} is no part of a graph"):
        torch.compile(convolutions, backend=backend, fullgraph=True)(image(), name)
    assert state() == before


class Switched(torch.nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        with backends.winograd(False):
            return conv2d(input)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("strict", [False, True])
def test_switch_in_an_exported_program_is_refused_by_name(strict: bool) -> None:
    with pytest.raises(RuntimeError, match=r"fastcnn\.backends\.winograd is no part of a graph"):
        torch.export.export(Switched(), (image().detach(),), strict=strict)


def kernels_of(function: Callable[[Tensor], Tensor], input: Tensor, algorithm: str) -> list[list[str]]:
    """What the forward runs where the algorithm is forced, and the backward outside."""
    outputs: list[Tensor] = []
    with backends.conv2d_algorithm(algorithm), backends.fallback(False):
        forward = recorded(lambda: outputs.append(function(input)))
    return [forward, recorded(lambda: torch.autograd.grad(outputs[0].square().sum(), (input, WEIGHT)))]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("op", "convolutions"), [("conv2d", 1), ("dense_block_train", 2), ("dense_block_infer", 2)])
def test_compiled_function_and_its_backward_obey_the_switches_of_each_call(
    op: str, convolutions: int, backend: str
) -> None:
    input, function = image(), OPS[op]
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for algorithm in ("automatic", "winograd_f2x3", "direct", "winograd_f4x3"):
        expected, got = (kernels_of(f, input, algorithm) for f in (function, compiled))
        assert got == expected
        # Both gradients of each convolution run it.
        counts = [kernels.count(algorithm) for kernels in expected]
        assert algorithm in ("automatic", "direct") or counts == [convolutions, 2 * convolutions]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("op", OPS)
def test_compiled_backward_runs_on_its_forwards_cpu_capability(op: str) -> None:
    input = image()
    compiled = torch.compile(OPS[op], backend="aot_eager", fullgraph=True)
    for name in reversed(capabilities()):
        with backends.cpu_capability(name):
            expected, output = OPS[op](input), compiled(input)
        assert torch.equal(output, expected)
        assert torch.equal(gradient(output, input), gradient(expected, input))
