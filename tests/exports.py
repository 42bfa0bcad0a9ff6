"""A small backbone with weights that are not the initial ones, and its export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from service.spec import RunSpec
from trainer.encoder import build_encoder
from trainer.export import export_backbone

TINY = {"name": "resnet18", "args": {"layers": [1, 1, 1, 0], "channels": [32, 64, 128, 128]}}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.21, 0.22]


def make_spec(backbone: dict[str, Any], image_size: int = 32) -> RunSpec:
    data = {"path": "/images", "image_size": image_size, "mean": MEAN, "std": STD}
    return RunSpec.model_validate({"name": "finches", "data": data, "schedule": {"epochs": 1}, "backbone": backbone})


def trained_state(spec: RunSpec) -> dict[str, Tensor]:
    """Weights and BatchNorm statistics that are not the initial ones, with buffers that are no part of the state dict."""
    backbone = build_encoder(spec).backbone
    size = spec.data.image_size
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        backbone(torch.randn(16, 3, size, size))
    return {name: p.detach() for name, p in backbone.named_parameters()} | dict(backbone.named_buffers())


def export_to(folder: Path) -> Path:
    """An export of 60 tensors with a small stem."""
    spec = make_spec(TINY)
    export_backbone(trained_state(spec), spec, folder, {"num_images": 1797, "knn": 97.25, "epochs": 15})
    return folder
