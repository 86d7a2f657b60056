"""The argument structs of a launcher's header, as ctypes sees them.

Reads `struct Name { type name, name[N]; };` and `constexpr` integers of a header and of what it includes by a relative
path, so a test cannot disagree with the header; the compiler confirms the layout.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # enum Dtype of element.h
SCALARS = {
    "bool": ctypes.c_bool,
    "char": ctypes.c_char,
    "int": ctypes.c_int,
    "unsigned": ctypes.c_uint,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "size_t": ctypes.c_size_t,
    "Dtype": ctypes.c_int32,
    "Conv2dPass": ctypes.c_int32,
} | {f"{sign}int{bits}_t": getattr(ctypes, f"c_{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
Structs = dict[str, type[ctypes.Structure]]


_known: dict[str, Structs] = {}  # by the header's text: mutants change it seldom


def read(header: Path, compiler: str, emulated_include: Path) -> Structs:
    """Read the structs of a header."""
    text = _with_includes(header, set())
    if text in _known:
        return _known[text]
    constants = {name: int(value) for name, value in re.findall(r"constexpr \w+ (k\w+) = (\d+);", text)}
    structs: Structs = {}
    for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", text, re.S | re.M):
        fields = [field for line in body.split(";") for field in _fields(line.strip(), structs, constants)]
        structs[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    _confirm(header, structs, compiler, emulated_include)
    _known[text] = structs
    return structs


def fill(struct: type[ctypes.Structure], values: dict[str, Any]) -> Any:
    """Make a struct; raise for a field that it does not have."""
    types = dict(struct._fields_)  # type: ignore[arg-type, misc]
    if unknown := set(values) - set(types):
        raise TypeError(f"{struct.__name__} has no {sorted(unknown)}, but {sorted(types)}")
    result = struct()
    result.alive = values  # while the struct is
    for name, value in values.items():
        kind = types[name]
        if isinstance(value, dict):
            value = fill(kind, value)
        elif isinstance(value, torch.Tensor):
            value = value.data_ptr()
        elif isinstance(value, torch.dtype):
            value = DTYPES[value]
        elif isinstance(value, bytes):
            value = ctypes.cast(value, ctypes.c_void_p).value
        elif isinstance(value, Sequence):
            items = [fill(kind._type_, item) if isinstance(item, dict) else item for item in value]
            value = kind(*(item.data_ptr() if isinstance(item, torch.Tensor) else item for item in items))
        setattr(result, name, value)
    return result


def _with_includes(header: Path, seen: set[Path]) -> str:
    """Return the text without comments, behind that of the headers that it includes by a relative path."""
    if header.resolve() in seen:
        return ""
    seen.add(header.resolve())
    text = re.sub(r"//.*", "", header.read_text())
    included = [_with_includes(header.parent / path, seen) for path in re.findall(r'#include "(.+)"', text)]
    return "\n".join([*included, text])


def _fields(declaration: str, structs: Structs, constants: dict[str, int]) -> list[tuple[str, Any]]:
    """Turn `const float *a, b[2][kMax] = 3` into names and types; a function gives none."""
    if not declaration or "(" in declaration or "}" in declaration or declaration.startswith(("static", "using")):
        return []
    match = re.match(r"(?:const )?(?:\w+::)*(\w+)\b(?: const)?(.*)", declaration, re.S)
    assert match, declaration
    base, fields = match[1], []
    for part in match[2].split(","):
        part = part.split("=")[0].strip()
        stars, name, sizes = re.fullmatch(r"((?:\*|const|__restrict__|\s)*)(\w+)((?:\[\w+\])*)", part).groups()  # type: ignore[union-attr]
        if "*" in stars:
            kind: Any = ctypes.c_void_p
        else:
            kind = structs[base] if base in structs else SCALARS[base]
        for size in reversed(re.findall(r"\[(\w+)\]", sizes)):
            kind = kind * (int(size) if size.isdigit() else constants[size])
        fields.append((name, kind))
    return fields


def _confirm(header: Path, structs: Structs, compiler: str, emulated_include: Path) -> None:
    lines = [f'#include "{header}"', "#include <cstddef>", "using namespace fastcnn;", "using namespace fastcnn::cuda;"]
    for name, struct in structs.items():
        lines.append(f"static_assert(sizeof({name}) == {ctypes.sizeof(struct)});")
        for field, *_ in struct._fields_:  # type: ignore[misc]
            lines.append(f"static_assert(offsetof({name}, {field}) == {getattr(struct, field).offset});")
    command = [compiler, "-std=c++20", "-fsyntax-only", f"-I{emulated_include}", "-x", "c++", "-"]
    result = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    assert result.returncode == 0, f"{header} and its ctypes differ:\n{result.stderr}"
