"""Networks compiled for inference: one call below Python runs all of it, in memory planned ahead.

The way of a model: export.py (torch.export) to graph.py, passes.py, build.py with plan.py and memory.py to spec.py's
plain data, which module.py runs and container.py keeps in files. backend.py is the way in from torch.compile.
"""

from fastcnn.compilation.module import CompiledModule, Report, compile, load

__all__ = ["CompiledModule", "Report", "compile", "load"]
