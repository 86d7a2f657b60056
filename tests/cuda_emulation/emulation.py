"""Compiles the launchers and kernels of csrc/cuda with g++ and runs them on the host, through ctypes.

An `Emulator` compiles `<op>_launch.cu` on first use and gives a `Library`, which launches as the host code of the op
does. Two builds: "checked" (every memory access of kernel code passes checker.cpp) and "address" (AddressSanitizer and
UBSan; the process must have libasan loaded first).
"""

from __future__ import annotations

import copy
import ctypes
import functools
import os
import re
import subprocess
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cuda_structs
import torch

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"
COMPILER = os.environ.get("CXX", "g++")
BUILD = os.environ.get("FASTCNN_EMULATION_BUILD", "checked")
FLAGS = ["-std=c++20", "-gdwarf-4", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
# Small tensors are to take the paths of large ones too.
BOUNDS = ["-DFASTCNN_MAX_SMALL_INDEX=2000", "-DFASTCNN_MAX_GRID=7", "-DFASTCNN_MAX_POSITIONS=120"]
BUILDS = {  # flags of kernels, of the emulator, and to link kernels
    "checked": (["-O1", "-fsanitize=thread"], [], ["-Wl,--wrap=memcpy,--wrap=memmove,--wrap=memset"]),
    "address": (  # -O0: -O1 compiles four times as long
        ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
        ["-fsanitize=address"],
        ["-fsanitize=address,undefined"],
    ),
}


class EmulationError(AssertionError):
    """What a kernel must not do: out of bounds, races, barriers that not all threads reach."""


class CompilationError(Exception):
    """g++ refused the sources."""


@dataclass(frozen=True)
class Launch:
    """One launch that a library made: the kernel's name and geometry.

    `code` is the address of the instance that ran; `aligned` is the kernel's last argument where that is a bool, which
    in every kernel says whether rows are moved as vectors.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    code: int
    aligned: bool | None


class Emulator:
    """Compiles the repository's csrc/ into `folder`."""

    def __init__(self, folder: Path, build: str = BUILD) -> None:
        self.folder, self.build, self.sources, self.warnings = folder, build, SOURCES, ["-Werror"]
        self.kernel_flags, self.core_flags, self.link_flags = BUILDS[build]
        self.paths: dict[tuple[str, int | None], Path] = {}
        self.libraries: dict[tuple[str, int | None], Library] = {}
        self.core_path = folder / f"libemulator_{build}.so"
        self.core = self._compile_core()

    def of(self, sources: Path, folder: Path, *, lines: bool = True) -> Emulator:
        """Give an emulator of other sources than csrc/, such as a mutated copy, that compiles rather than runs fast.

        It compiles faster still where it need not name the `lines` of faults.
        """
        other = copy.copy(self)
        other.kernel_flags = [*self.kernel_flags, "-O0", "-g1" if lines else "-g0"]
        other.folder, other.sources, other.warnings, other.paths, other.libraries = folder, sources, ["-w"], {}, {}
        return other

    def library(self, op: str, arch: int | None = None) -> Library:
        """Give the library of csrc/cuda/<op>_launch.cu, with __CUDA_ARCH__ undefined or `arch`, such as 750."""
        if (op, arch) not in self.libraries:
            self.libraries[op, arch] = Library(self, op, self.compile(op, arch))
        return self.libraries[op, arch]

    def compile(self, op: str, arch: int | None = None) -> Path:
        """Compile what `library` loads; another thread may do it ahead."""
        if (op, arch) not in self.paths:
            self.paths[op, arch] = self._compile_op(op, arch)
        return self.paths[op, arch]

    def tensor(self, source: torch.Tensor, *, offset: int = 0, writable: bool = False, name: str = "") -> torch.Tensor:
        """Copy a dense tensor, in its layout, into memory that kernels may read, or write where `writable`.

        The copy starts `offset` bytes behind a multiple of 64, and nothing around it may be touched.
        """
        guarded = self.empty(source.shape, source.dtype, source.stride(), offset=offset, writable=writable, name=name)
        return guarded.copy_(source)

    def empty(
        self,
        shape: tuple[int, ...] | torch.Size,
        dtype: torch.dtype,
        stride: tuple[int, ...] | None = None,
        *,
        offset: int = 0,
        writable: bool = True,
        name: str = "",
    ) -> torch.Tensor:
        """Give a tensor for kernels to write, full of ones in bits: NaN in floating-point types."""
        like = torch.empty(shape, device="meta")
        stride = like.stride() if stride is None else stride
        count = max((1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))) if like.numel() else 0, 0)
        size = count * dtype.itemsize
        title = name or f"{'output' if writable else 'input'} {list(shape)}"
        pointer = self.core.emulation_allocate(size, offset, int(writable), title.encode())
        if size == 0:
            memory: Any = bytearray(1)  # torch.frombuffer takes no empty buffer
            flat = torch.frombuffer(memory, dtype=torch.uint8)[:0].view(dtype)
        else:
            memory = (ctypes.c_char * size).from_address(pointer)
            flat = torch.frombuffer(memory, dtype=dtype)
        weakref.finalize(flat.untyped_storage(), self.core.emulation_free, pointer)
        return flat.as_strided(shape, stride)

    def _compile_core(self) -> ctypes.CDLL:
        sources = [HERE / "emulator.cpp", HERE / "checker.cpp"]
        options = [*FLAGS, "-Werror", "-O2", *self.core_flags, f"-I{HERE / 'include'}", "-shared"]
        compile_(*options, *sources, "-o", self.core_path)
        core = ctypes.CDLL(str(self.core_path))
        core.emulation_allocate.restype = ctypes.c_void_p
        core.emulation_allocate.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p]
        core.emulation_free.argtypes = [ctypes.c_void_p]
        core.emulation_reset.argtypes = [ctypes.c_uint64]
        core.emulation_failure.restype = ctypes.c_char_p
        core.emulation_failure_place.restype = ctypes.c_void_p
        core.emulation_launch.restype = ctypes.c_char_p
        return core

    def _compile_op(self, op: str, arch: int | None) -> Path:
        path = self.folder / f"lib{op}_{self.build}_{arch or 'any'}.so"
        defines = [*BOUNDS, *([f"-DFASTCNN_EMULATED_ARCH={arch}"] if arch else [])]
        includes = [f"-I{HERE / 'include'}", f"-I{self.sources}", f"-I{SOURCES}"]
        source = self.sources / "cuda" / f"{op}_launch.cu"
        unit = path.with_suffix(".o")
        # -fno-gnu-unique: the shared memory of this library is not another's.
        options = [*FLAGS, *self.warnings, "-fno-gnu-unique", *self.kernel_flags, *defines, *includes]
        compile_(*options, "-x", "c++", "-c", source, "-o", unit)
        compile_("-shared", "-Wl,-Bsymbolic,--no-undefined", *self.link_flags, unit, self.core_path, "-o", path)
        return path


class Library:
    """The launchers of one op: calls them, and says what they launched and what went wrong."""

    def __init__(self, emulator: Emulator, op: str, path: Path) -> None:
        self.emulator, self.op, self.path = emulator, op, path
        self.structs = cuda_structs.read(emulator.sources / "cuda" / f"{op}_launch.h", COMPILER, HERE / "include")
        self.launches: list[Launch] = []  # of the last call
        self._library = ctypes.CDLL(str(path))
        self._symbols = _symbols(path)

    def struct(self, name: str, **fields: Any) -> Any:
        """Make a struct of `<op>_launch.h`: tensors go for pointers, dtypes for Dtype, sequences for arrays."""
        return cuda_structs.fill(self.structs[name], fields)

    def launch(self, name: str, args: Any, seed: int = 0) -> list[Launch]:
        """Call `cudaError_t name(const Args& args, cudaStream_t)`; return its launches, raise what they did wrong."""
        core = self.emulator.core
        core.emulation_reset(seed)
        error = self.call(name, ctypes.byref(args), None)
        geometry, code, flag = (ctypes.c_uint * 6)(), ctypes.c_void_p(), ctypes.c_int()
        self.launches = []
        for i in range(core.emulation_launch_count()):
            kernel = core.emulation_launch(i, geometry, ctypes.byref(code), ctypes.byref(flag)).decode()
            aligned = None if flag.value < 0 else bool(flag.value)
            self.launches.append(Launch(kernel, tuple(geometry[:3]), tuple(geometry[3:]), code.value or 0, aligned))
        if failure := core.emulation_failure().decode():
            raise EmulationError(self._name_shared(failure) + self._place(core.emulation_failure_place()))
        if error != 0:
            raise EmulationError(f"{name} returned cudaError_t {error}")
        return self.launches

    def call(self, name: str, *args: Any, restype: Any = ctypes.c_int) -> Any:
        """Call another function of namespace fastcnn::cuda, with ctypes' arguments."""
        function = self._library[self._symbols[name]]
        function.restype = restype
        return function(*args)

    @functools.cached_property
    def instances(self) -> dict[int, str]:
        """Name the instances of kernels that the library holds, such as concat_kernel<uint4, long>, by their code."""
        command = ["nm", "-C", "--defined-only", self.path]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        kernel = r"^(\w+) [tTwW] (?:void )?fastcnn::cuda::(\w+_kernel(?:<.*>)?)\([^()]*\)$"
        return {self._base + int(offset, 16): name for offset, name in re.findall(kernel, listing, re.M)}

    @functools.cached_property
    def _base(self) -> int:
        """The address that the library was loaded at."""
        return next(int(line.split("-")[0], 16) for line in _maps() if line.endswith(str(self.path)))

    def _place(self, address: int | None) -> str:
        """Name the line of an address of this library's code."""
        if not address:
            return ""
        command = ["addr2line", "-e", str(self.path), "-s", f"{address - self._base - 1:#x}"]
        return f" ({subprocess.run(command, capture_output=True, text=True).stdout.split()[0]})"

    def _name_shared(self, text: str) -> str:
        """Replace an offset among the library's statics by the variable there, and the offset in it."""
        return re.sub(r"\(byte (\d+)\)", lambda match: f"({self._variable(int(match[1]))})", text)

    def _variable(self, offset: int) -> str:
        listing = subprocess.run(["nm", "-S", "-C", self.path], capture_output=True, text=True, check=True).stdout
        start = int(re.search(r"^(\w+) \w __bss_start$", listing, re.M)[1], 16)  # type: ignore[index]
        for begin, size, name in re.findall(r"^(\w{16}) (\w{16}) [bBdDVu] .*?(\w+)$", listing, re.M):
            within = offset - (int(begin, 16) - start)
            if 0 <= within < int(size, 16):
                return f"byte {within} of {name}"
        return "between two variables"


def compile_(*arguments: object) -> None:
    """Run g++; its words become the exception's."""
    command = [COMPILER, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise CompilationError(f"{' '.join(command)}\n{result.stderr}")


def dtype_tag(dtype: torch.dtype) -> int:
    """Give the value of enum Dtype."""
    return cuda_structs.DTYPES[dtype]


def _symbols(path: Path) -> dict[str, str]:
    """Map the functions of namespace fastcnn::cuda to their mangled names."""
    listing = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    mangled = re.findall(r" T (_ZN7fastcnn4cuda\w+)", listing)
    names = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True).stdout.splitlines()
    return {
        name.split("(")[0].removeprefix("fastcnn::cuda::"): symbol for name, symbol in zip(names, mangled, strict=True)
    }


def _maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()
