"""Makes torchvision's models importable where its compiled ops are not."""

from __future__ import annotations

import torch

# torchvision declares fake kernels for its ops as it is imported. A build of it for another torch, as beside torch's
# CPU build, has not loaded the library that declares the ops themselves, and its import fails for that; the models use
# none of the ops.
_library = torch.library.Library("torchvision", "FRAGMENT")
try:
    import torchvision as torchvision
except RuntimeError:
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision as torchvision
