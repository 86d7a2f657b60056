"""The networks of the comparison with other ways to run them, and those ways: each a function of a batch of images.

Every peer computes in float32 on the CPU with the number of threads it is told, and says what it reads back of that.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastcnn
from fastcnn._torchvision import import_torchvision

OURS = ("lenet", "alexnet", "vgg11", "nin", "googlenet", "resnet18", "densenet")
TORCHVISION = ("resnet50", "vgg16", "densenet121", "googlenet", "mobilenet_v2")
BATCHES, THREADS = (1, 8, 32), (1, 2)
NETWORKS = (*OURS, *(f"torchvision:{name}" for name in TORCHVISION))

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """A network made ready to run, and what reads back its threads, precision and layouts."""

    run: Run
    facts: Callable[[], str]  # apart, as it may take memory that running does not


def network(name: str) -> nn.Module:
    """A network in evaluation mode, of torch.nn's layers: the same random weights and statistics in every process."""
    torch.manual_seed(0)
    source, _, inner = name.rpartition(":")
    if source:
        slow = {"init_weights": False, "aux_logits": False} if inner == "googlenet" else {}
        model: nn.Module = import_torchvision().models.get_model(inner, weights=None, **slow)
    else:
        model = fastcnn.models.REGISTRY[name].build(layers="torch")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh ones would fold to nothing
            for tensor, center in ((module.running_mean, 0.0), (module.bias, 0.0)):
                nn.init.normal_(tensor, center, 0.1)
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def images(name: str, batch: int) -> Tensor:
    """A batch of random images of the size that a network takes, contiguous NCHW."""
    channels, size = (3, 224) if ":" in name else (1, fastcnn.models.REGISTRY[name].input_size)
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def export_onnx(name: str, batch: int, path: Path) -> None:
    """Writes a network for a batch of this size as ONNX."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(network(name), (images(name, batch),), str(path), dynamo=True, external_data=False)


def _torch_facts(model: nn.Module) -> str:
    weight = next(p for p in model.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1)
    layout = "channels_last" if weight.is_contiguous(memory_format=torch.channels_last) else "NCHW"
    precision = torch.get_float32_matmul_precision()
    return f"{torch.get_num_threads()} threads, {weight.dtype} at precision {precision}, {layout}"


def _channels_last(run: Run) -> Run:
    """Images in the layout that the network prefers, as a program that cares for speed would hold them."""
    held: dict[int, Tensor] = {}

    def called(batch: Tensor) -> Tensor:
        image = held.get(id(batch))
        if image is None:
            held.clear()
            image = held[id(batch)] = batch.to(memory_format=torch.channels_last)
        return run(image)

    return called


def _eager(name: str, batch: int, threads: int, onnx: Path) -> Peer:
    model = network(name)
    return Peer(model, lambda: _torch_facts(model))


def _eager_channels_last(name: str, batch: int, threads: int, onnx: Path) -> Peer:
    model = network(name).to(memory_format=torch.channels_last)
    return Peer(_channels_last(model), lambda: _torch_facts(model))


def _compiled_by_torch(name: str, batch: int, threads: int, onnx: Path) -> Peer:
    model = network(name).to(memory_format=torch.channels_last)
    torch._dynamo.reset()
    torch._inductor.config.freezing = True
    compiled = torch.compile(model)
    return Peer(_channels_last(compiled), lambda: f"{_torch_facts(model)}, freezing")


def _onnx_runtime(name: str, batch: int, threads: int, onnx: Path) -> Peer:
    import onnxruntime

    def session(**settings: Any) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        for key, value in settings.items():
            setattr(options, key, value)
        return onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])

    made = session()
    entry = made.get_inputs()[0]

    def facts() -> str:
        with tempfile.TemporaryDirectory() as folder:
            optimized = str(Path(folder) / "optimized.onnx")
            session(optimized_model_filepath=optimized, log_severity_level=3)  # no warning that it fits this CPU only
            layouts = _layouts_of_onnx(optimized)
        used = made.get_session_options().intra_op_num_threads
        return f"{used} threads, {entry.type} {entry.shape}, {layouts}, {made.get_providers()[0]}"

    return Peer(lambda batch: torch.from_numpy(made.run(None, {entry.name: batch.numpy()})[0]), facts)


def _layouts_of_onnx(path: str) -> str:
    """How many of an optimized ONNX file's convolutions are ONNX Runtime's blocked ones."""
    import onnx

    nodes = [node for node in onnx.load(path).graph.node if node.op_type in ("Conv", "FusedConv")]
    blocked = sum(node.domain == "com.microsoft.nchwc" for node in nodes)
    return f"{blocked} of {len(nodes)} convolutions NCHWc"


def _openvino(name: str, batch: int, threads: int, onnx: Path) -> Peer:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(onnx), "CPU", settings)
    request = compiled.create_infer_request()
    given, result = request.get_input_tensor(), request.get_output_tensor()

    def facts() -> str:
        used = compiled.get_property("INFERENCE_NUM_THREADS")
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        return f"{used} threads, {precision} {list(given.shape)}, {_layouts_of_openvino(compiled)}"

    def run(batch: Tensor) -> Tensor:
        # infer([array]) looks for these tensors at each call, which takes 50 us, and 110 where onnxruntime is imported.
        given.data[:] = batch.numpy()
        request.infer()
        return torch.from_numpy(result.data.copy())

    return Peer(run, facts)


def _layouts_of_openvino(compiled: Any) -> str:
    """How many of a compiled model's convolutions run in each precision and layout, by oneDNN's names (acdb: NHWC)."""
    infos = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    convolutions = [info for info in infos if info["layerType"].get() == "Convolution"]
    kinds = Counter(f"{info['runtimePrecision'].get()} {info['outputLayouts'].get()}" for info in convolutions)
    return "convolutions " + ", ".join(f"{count} in {kind}" for kind, count in kinds.most_common())


def _converted(name: str, batch: int, threads: int, onnx: Path) -> Peer:
    with contextlib.redirect_stdout(None):
        model = fastcnn.convert(network(name))
    return Peer(_channels_last(model), lambda: f"{_torch_facts(model)}, without an example")


def _compiled(name: str, batch: int, threads: int, onnx: Path) -> Peer:
    compiled = fastcnn.compile(network(name), images(name, batch))

    def facts() -> str:
        others = ", ".join(compiled.report().aten) or "none"
        return f"{torch.get_num_threads()} threads, {compiled.extra_repr()}, NHWC inside; operators of torch: {others}"

    return Peer(compiled, facts)


# In the order of the tables; fastcnn's last.
PEERS: dict[str, Callable[[str, int, int, Path], Peer]] = {
    "torch eager": _eager,
    "torch channels_last": _eager_channels_last,
    "torch.compile": _compiled_by_torch,
    "ONNX Runtime": _onnx_runtime,
    "OpenVINO": _openvino,
    "fastcnn converted": _converted,
    "fastcnn compiled": _compiled,
}


@contextlib.contextmanager
def threads_of_torch(number: int) -> Iterator[None]:
    """torch on this many threads, and under inference_mode."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def build(peer: str, name: str, batch: int, threads: int, onnx: Path) -> Peer:
    """A peer ready to run a network; torch's threads are those of the caller's threads_of_torch."""
    with torch.inference_mode(False), torch.no_grad():
        return PEERS[peer](name, batch, threads, onnx)


def truth(name: str, batch: int) -> Tensor:
    """The network's output in float64."""
    with torch.no_grad():
        output: Any = network(name).double()(images(name, batch).double())
    return output.float()
