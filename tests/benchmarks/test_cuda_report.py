"""What the CUDA report reads from the compilers' words, and what it makes of it."""

from __future__ import annotations

import cuda_report
import pytest
from cuda_report import Kernel

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z8a_kernelv' for 'sm_80'
ptxas info    : Function properties for _Z8a_kernelv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 1 barriers, 16384 bytes smem, 1920 bytes cmem[0]
ptxas info    : Compiling entry function '_Z8b_kernelv' for 'sm_80'
ptxas info    : Function properties for _Z8b_kernelv
    48 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 352 bytes cmem[0]
"""
PTX = """\
.visible .entry _Z8a_kernelv(
\t.param .align 8 .b8 _Z8a_kernelv_param_0[1568]
)
.maxntid 16, 16, 1
.minnctapersm 2
{
\t.reg .pred \t%p<3>;
}
.visible .entry _Z8b_kernelv(
)
{
}
"""
SASS = """\
\t.section\t.text._Z8a_kernelv,"ax",@progbits
        /*00c0*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
        /*00d0*/              @!P0 LDS.128 R8, [R9] ;
        /*00e0*/                   LDG.E R8, [R9] ;
        /*00f0*/              @P1  STG.E.128 [R2.64], R4 ;
        /*0100*/                   HMMA.16816.F32 R4, R8, R2, R4 ;
        /*0110*/                   LDGSTS.E.BYPASS.128 [R3], [R4.64] ;
\t.section\t.text._Z8b_kernelv,"ax",@progbits
        /*00c0*/                   STS.64 [R2], R4 ;
"""


def test_report_reads_ptxas() -> None:
    kernels = cuda_report.read_ptxas(PTXAS, "8.0")
    assert kernels == {
        "_Z8a_kernelv": Kernel("_Z8a_kernelv", "8.0", registers=30, shared=16384),
        "_Z8b_kernelv": Kernel("_Z8b_kernelv", "8.0", registers=255, stack=48, spills=28),
    }


def test_report_reads_block_sizes_and_disassembly() -> None:
    assert cuda_report.read_block_sizes(PTX) == {"_Z8a_kernelv": 256}
    counts = cuda_report.read_sass(SASS)
    assert counts["_Z8a_kernelv"] == {"loads": 3, "stores": 1, "matrix": 1}
    assert not counts["_Z8b_kernelv"]


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "expected"),
    [  # as CUDA's cuda_occupancy.h answers
        ("7.5", 256, 64, 16384, 1.0),
        ("8.0", 256, 128, 49152, 0.25),
        ("8.6", 128, 40, 20000, 1 / 3),
        ("8.9", 1024, 60, 0, 2 / 3),
        ("9.0", 192, 168, 33000, 0.1875),
        ("12.0", 64, 32, 100, 1.0),
        ("12.0", 32, 32, 100, 0.5),
        ("8.0", 1024, 128, 0, 0.0),
    ],
)
def test_report_computes_occupancy(
    architecture: str, threads: int, registers: int, shared: int, expected: float
) -> None:
    assert cuda_report.occupancy(architecture, threads, registers, shared) == pytest.approx(expected)


def test_report_names_faults() -> None:
    good = Kernel("", "8.0", threads=256, registers=64, name="good_kernel")
    spilling = Kernel("", "8.0", threads=256, registers=255, spills=28, name="spilling_kernel")
    unbounded = Kernel("", "9.0", registers=64, name="unbounded_kernel")
    too_large = Kernel("", "8.0", threads=1024, registers=128, name="large_kernel")
    found = cuda_report.faults([good, spilling, unbounded, too_large])
    assert [text.split(" on ")[0] for text in found] == ["spilling_kernel", "unbounded_kernel", "large_kernel"]
    assert "28 bytes" in found[0]
    assert len(cuda_report.table([good, spilling]).rows) == 2
