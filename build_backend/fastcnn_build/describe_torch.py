"""Print, as JSON, what a build needs to know of the torch that this interpreter imports.

Run as a script by find_torch in the interpreter to ask; exits with NO_TORCH where there is none.
"""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

NO_TORCH = 3
DEFAULT_ARCH_LIST = "7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX"


def describe() -> dict[str, object]:
    """Collect version, include and library folders, ABI, language standard and CUDA facts."""
    # torch refuses to list architectures without a visible GPU unless it is told some.
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCH_LIST)
    import torch
    from torch.utils import cpp_extension

    site_packages = Path(torch.__file__).parents[1]
    standard = re.search(r"C\+\+ Version: 20(\d\d)", torch.__config__.show())
    return {
        "version": str(torch.__version__),
        "path": str(Path(torch.__file__).parent),
        "cuda": torch.version.cuda,
        "include_dirs": cpp_extension.include_paths(),
        "library_dir": cpp_extension.library_paths()[0],
        "cxx11_abi": torch.compiled_with_cxx11_abi(),
        # Headers are written in the standard that torch itself was compiled with.
        "cxx_standard": int(standard.group(1)) if standard else 20,
        # Wheels of CUDA torch bring the headers of cuBLAS and its kin, which torch's CUDA headers include.
        "cuda_include_dirs": sorted(str(path) for path in site_packages.glob("nvidia/*/include")),
        "cuda_arch_list": os.environ["TORCH_CUDA_ARCH_LIST"],
        "cuda_arch_flags": cpp_extension._get_cuda_arch_flags() if torch.version.cuda else [],
    }


if __name__ == "__main__":
    if importlib.util.find_spec("torch") is None:
        sys.exit(NO_TORCH)
    print(json.dumps(describe()))
