"""Networks compiled for inference: one call below Python runs all of it, in memory planned ahead.

The way of a model: export.py (torch.export) to graph.py, passes.py, build.py with plan.py and memory.py to spec.py's
plain data, which executable.py hands to C++ and container.py keeps in files; module.py is what callers hold, and
backend.py the way in from torch.compile.
"""

from fastcnn.compilation.executable import Report
from fastcnn.compilation.module import CompiledModule, compile, load

__all__ = ["CompiledModule", "Report", "compile", "load"]
