"""timm beside a torchvision of another build.

timm imports torchvision. PyPI's torchvision is a CUDA build: beside the CPU build of PyTorch its compiled operators do not
load, and its import ends with `operator torchvision::nms does not exist`. Nothing here calls those operators, so declaring
the two that torchvision registers fake kernels for is enough.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache  # a Library takes its operators with it when it is freed
def declare_missing_operators() -> torch.library.Library | None:
    """Declare torchvision::nms and torchvision::qnms where torchvision's own cannot be loaded; call before importing timm."""
    package = importlib.util.find_spec("torchvision")
    folder = Path(package.origin).parent if package and package.origin else None
    if folder is None:
        return None
    for compiled in folder.glob("_C*.so"):
        try:
            torch.ops.load_library(compiled)
        except OSError:  # built against another PyTorch
            continue
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}{_SIGNATURE}")
    return library


def import_timm() -> ModuleType:
    """The module timm."""
    declare_missing_operators()
    import timm

    return timm
