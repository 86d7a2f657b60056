"""Files of compiled networks: they run as what was saved, and everything else is refused with an error."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compiling import prepare, random
from threads import run_in_threads
from torch import Tensor, nn
from torch.nn import functional as F

import fastcnn
from fastcnn.compilation import CompiledModule, pure_ops
from fastcnn.compilation.spec import Program, validate

HEAD = 48  # bytes before the JSON


class Network(nn.Module):
    """With plans, an operator of torch's, constants in both, and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Hardtanh(-0.5, float("inf"))
        self.gamma = nn.Parameter(torch.rand(3, 1, 1))
        self.linear = nn.Linear(3 * 3 * 4, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.act(self.norm(self.conv(x))) * self.gamma
        return {"logits": self.linear(torch.relu(y).flatten(1)), "features": (y, [x])}


@pytest.fixture(scope="module")
def image() -> Tensor:
    return random(2, 2, 5, 6)


@pytest.fixture
def compiled(image: Tensor) -> CompiledModule:
    torch.manual_seed(0)
    return fastcnn.compile(prepare(Network()), image)


@pytest.fixture
def path(compiled: CompiledModule, tmp_path: Path) -> Path:
    compiled.save(tmp_path / "network.fastcnn")
    return tmp_path / "network.fastcnn"


def assert_same(actual: Any, expected: Any) -> None:
    torch.utils._pytree.tree_map(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0), actual, expected)


def document_of(path: Path) -> Any:
    data = path.read_bytes()
    return json.loads(data[HEAD : HEAD + int.from_bytes(data[8:16], "little")])


def rewrite(path: Path, document: Any) -> None:
    """The file with another JSON whose checksum fits, and the constants where they belong."""
    data = path.read_bytes()
    old = -(-(HEAD + int.from_bytes(data[8:16], "little")) // 64) * 64
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    head = data[:8] + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
    path.write_bytes(head + bytes(-len(head) % 64) + data[old:])


def test_loaded_is_what_was_saved(compiled: CompiledModule, path: Path, image: Tensor) -> None:
    loaded = fastcnn.load(str(path))
    assert_same(loaded(image), compiled(image))
    assert loaded.report() == compiled.report()
    loaded.save(path.with_name("again"))
    assert path.with_name("again").read_bytes() == path.read_bytes()


def test_loaded_takes_new_weights(path: Path, image: Tensor) -> None:
    torch.manual_seed(1)
    other = prepare(Network())
    loaded = fastcnn.load(path)
    loaded.refresh(other)
    assert_same(loaded(image), fastcnn.compile(other, image)(image))


def test_loaded_in_another_process_gives_the_same(compiled: CompiledModule, path: Path, image: Tensor) -> None:
    torch.save((image, compiled(image)), path.with_name("expected.pt"))
    support = Path(__file__).parents[1] / "support"
    code = (
        "import sys, torch, fastcnn; sys.path.insert(0, sys.argv[1])\n"
        "from program_executor import ProgramExecutor; fastcnn.compilation.executable.prepare = ProgramExecutor\n"
        "image, expected = torch.load(sys.argv[3])\n"
        "actual = fastcnn.load(sys.argv[2])(image)\n"
        "same = torch.utils._pytree.tree_map(torch.equal, actual, expected)\n"
        "assert all(torch.utils._pytree.tree_leaves(same)), same"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(fastcnn.__file__).parents[1])}
    arguments = [str(support), str(path), str(path.with_name("expected.pt"))]
    result = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_load_refuses_a_file_cut_anywhere(path: Path) -> None:
    data = path.read_bytes()
    for length in [*range(HEAD + 20), *range(HEAD + 20, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(RuntimeError, match=r"fastcnn.load: cannot load .*network.fastcnn"):
            fastcnn.load(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(RuntimeError, match=r"more in it than it says"):
        fastcnn.load(path)


def test_load_refuses_a_file_with_any_byte_changed(path: Path) -> None:
    data = path.read_bytes()
    for position in [*range(HEAD + 20), *range(HEAD + 20, len(data), 7)]:
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        with pytest.raises(RuntimeError, match=r"fastcnn.load: cannot load"):
            fastcnn.load(path)


@pytest.mark.parametrize("content", [b"", b"fastcnn", b"\x80\x04N.", pickle.dumps({"a": 1}), b"PK\3\4" + bytes(100)])
def test_load_refuses_foreign_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(RuntimeError, match=r"is no file that CompiledModule\.save wrote"):
        fastcnn.load(tmp_path / "file")


def test_load_reads_no_more_of_a_foreign_file_than_its_head(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(2**40)  # a hole
    with pytest.raises(RuntimeError, match=r"is no file that CompiledModule\.save wrote"):
        fastcnn.load(tmp_path / "file")


def test_saves_to_one_path_at_once_leave_a_whole_file(compiled: CompiledModule, path: Path, image: Tensor) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    run_in_threads(lambda seed: [compiled.save((path, link)[seed % 2]) for _ in range(20)], 4)
    assert link.is_symlink() and sorted(os.listdir(path.parent)) == sorted([path.name, link.name])
    assert_same(fastcnn.load(link)(image), compiled(image))


def test_load_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fastcnn.load(tmp_path / "none")


def _set(*keys: Any) -> Callable[[Any], None]:
    """Sets document[keys[0]][keys[1]]... to the last of them."""

    def change(document: Any) -> None:
        *way, last, value = keys
        for key in way:
            document = document[key]
        document[last] = value

    return change


PROGRAM, OP, PLAN = "program", 0, 1  # the network's first two segments


def _norm(mean: Any, variance: Any) -> Callable[[Any], None]:
    """Makes the operator a batch norm in training mode."""
    args = [{"slot": 0}, None, None, mean, variance, True, 0.1, 1e-5, False]
    call = {"op": "aten.batch_norm.default", "many": False, "outputs": [1], "kwargs": {}, "args": args}
    return _set(PROGRAM, "segments", OP, call)


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "version": (_set("version", 1), "version 1"),
    "huge tensor": (_set("tensors", 0, "shape", [2**40, 2**40]), "ends beyond it"),
    "negative size": (_set("tensors", 0, "shape", [-1, -54]), "no valid shape"),
    "size no int": (_set("tensors", 0, "shape", [54.0]), "no valid shape"),
    "dtype": (_set("tensors", 0, "dtype", "object"), "KeyError: 'object'"),
    "no tensors": (_set("tensors", []), "more in it than it says"),
    "tensors null": (_set("tensors", None), "TypeError"),
    "dtype of the program": (_set(PROGRAM, "dtype", "bfloat16"), "in bfloat16, and this version in float32 alone"),
    "operator": (_set(PROGRAM, "segments", OP, "op", "aten.from_file.default"), "that a file may name"),
    "writing operator": (
        _set(PROGRAM, "segments", OP, "op", "aten.relu_.default"),
        "that a file may name",
    ),
    "inner operator": (
        # It believes the sizes that it is given, and reads as far.
        _set(PROGRAM, "segments", OP, "op", "aten.native_group_norm.default"),
        "that a file may name",
    ),
    "python": (_set(PROGRAM, "segments", OP, "op", "os.system"), "that a file may name"),
    "slot not filled": (_set(PROGRAM, "segments", OP, "args", [{"slot": 3}]), "a slot that is read"),
    "keyword that looks like a slot": (
        _set(PROGRAM, "segments", OP, "kwargs", {"slot": {"slot": 9}}),
        "a slot that is read",
    ),
    "statistics that are written": (_norm({"constant": 0}, {"constant": 0}), "an operator that writes"),
    "a variance that is written": (_norm(None, {"constant": 0}), "an operator that writes"),
    "inputs that a plan does not have": (_set(PROGRAM, "segments", PLAN, "inputs", [0, 0]), "a plan's inputs"),
    "constant": (_set(PROGRAM, "segments", OP, "args", [{"constant": 99}]), "a constant"),
    "negative constant": (_set(PROGRAM, "segments", OP, "args", [{"constant": -1}]), "a constant"),
    "unknown key": (_set(PROGRAM, "segments", OP, "args", [{"file": "x"}]), "KeyError"),
    "input slot": (_set(PROGRAM, "segments", PLAN, "inputs", [7]), "a slot that is read"),
    "output twice": (_set(PROGRAM, "segments", PLAN, "outputs", [0]), "a slot that is filled"),
    "step": (_set(PROGRAM, "segments", PLAN, "plan", "steps", [[99]]), "a plan's step"),
    "step too short": (_set(PROGRAM, "segments", PLAN, "plan", "steps", [[0, 0, 0]]), "a plan's step"),
    "value no int": (_set(PROGRAM, "segments", PLAN, "plan", "values", [[0.5] * 7]), "a plan's value"),
    "value too large": (_set(PROGRAM, "segments", PLAN, "plan", "values", [[2**63] * 7]), "a plan's value"),
    "arena": (_set(PROGRAM, "segments", PLAN, "plan", "arena", -1), "a plan's arena"),
    "slots": (_set(PROGRAM, "slots", 1), "a slot that is filled"),
    "many slots": (_set(PROGRAM, "slots", 2**60), "its number of slots"),
    "outputs": (_set(PROGRAM, "outputs", [99]), "a slot that is read"),
    "structure": (_set(PROGRAM, "structure", {"dict": {"a": 17}}), "what it returns"),
    "structure kind": (_set(PROGRAM, "structure", {"set": [0]}), "what it returns"),
    "inputs": (_set(PROGRAM, "inputs", []), "its inputs"),
    "another key": (_set(PROGRAM, "code", "x"), "its keys"),
    "no document": (_set(PROGRAM, 3), "TypeError"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_load_refuses_hostile_documents(path: Path, name: str) -> None:
    change, message = HOSTILE[name]
    document = document_of(path)
    change(document)
    rewrite(path, document)
    with pytest.raises(RuntimeError, match=r"fastcnn.load: cannot load") as error:
        fastcnn.load(path)
    assert message in str(error.value)


@pytest.mark.parametrize("text", [b"", b"[]", b"nul", b"\xff", b'{"version":1}', b"[" * 100_000, b"1" * 10_000])
def test_load_refuses_other_json(path: Path, text: bytes) -> None:
    rewrite(path, text)
    with pytest.raises(RuntimeError, match=r"fastcnn.load: cannot load"):
        fastcnn.load(path)


def test_save_keeps_the_old_file_where_writing_fails(
    compiled: CompiledModule, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match=r"no space"):
        compiled.save(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_every_operator_that_files_may_name_exists_and_is_pure() -> None:
    for name in pure_ops.PURE_OPS:
        op: Any = pure_ops.find(name)
        assert name.startswith("operator.") or not op._schema.is_mutable, name
    random_unless = {name for name in pure_ops.PURE_OPS if pure_ops.is_random(name, [{"slot": 0}] * 4 + [0.5], {})}
    assert random_unless == {"aten.scaled_dot_product_attention.default"}


def test_file_keeps_what_picks_and_masks(tmp_path: Path) -> None:
    class Mask(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            values, places = x.flatten(1).topk(3)
            masked = x.masked_fill(x.isnan() | (x > 1), 0.0)
            return (
                values,
                places,
                masked,
                x.argmax(1),
                torch.einsum("nchw,nkhw->nck", x, x),
                x.cumsum(2),
                x.logsumexp(1),
            )

    compiled, images = fastcnn.compile(Mask().eval(), random(1, 2, 3, 3)), random(3, 2, 3, 3)
    compiled.save(tmp_path / "file")
    for got, wanted in zip(fastcnn.load(tmp_path / "file")(images), Mask()(images), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_file_names_attention_only_without_dropout(p: float, tmp_path: Path) -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, dropout_p=p)

    compiled, path = fastcnn.compile(Attention().eval(), random(1, 2, 3, 4)), tmp_path / "file"
    if p == 0:
        compiled.save(path)
        torch.testing.assert_close(fastcnn.load(path)(random(2, 2, 3, 4)), Attention()(random(2, 2, 3, 4)))
        return
    with pytest.raises(RuntimeError, match=r"may not name the operator aten.scaled_dot_product_attention.default"):
        compiled.save(path)
    document = compiled._executable.program.document
    with pytest.raises(ValueError, match=r"an operator that draws numbers"):
        validate(Program(document, compiled._executable.program.constants))


def test_save_refuses_operators_that_files_may_not_name(tmp_path: Path) -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + torch.rand_like(x))

    compiled = fastcnn.compile(Noise().eval(), random(1, 2, 3, 3))
    assert compiled(random(1, 2, 3, 3)).shape == (1, 2, 3, 3)
    with pytest.raises(RuntimeError, match=r"may not name the operator aten.rand_like.default"):
        compiled.save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_save_refuses_dtypes_that_files_may_not_hold(tmp_path: Path) -> None:
    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.tensor([1j], dtype=torch.complex64)

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.factor).abs()

    compiled = fastcnn.compile(Rotated().eval(), random(2, 2, 3, 3))
    with pytest.raises(RuntimeError, match=r"may not hold constants of dtype torch.complex64"):
        compiled.save(tmp_path / "file")
    assert not list(tmp_path.iterdir())
