"""The README of an exported backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.spec import RunSpec

_LABELS = {
    "num_images": "images trained on (unlabelled)",
    "epochs": "epochs",
    "knn": "kNN accuracy in percent",
    "knn_random": "kNN accuracy of the random encoder",
    "knn_pixels": "kNN accuracy of raw pixels",
}


def model_card(spec: RunSpec, config: Mapping[str, Any], metrics: Mapping[str, Any], *, small: bool) -> str:
    """Markdown: what it is, how it did, how to load it, how to prove the load."""
    size = spec.data.image_size
    rows = [("architecture", config["architecture"]), ("features", config["num_features"]), ("image size", f"{size} x {size}")]
    rows += [(_LABELS.get(name, name), f"{value:.2f}" if isinstance(value, float) else value) for name, value in metrics.items()]
    if metrics.get("knn") is not None:
        rows.append(("kNN protocol", f"cosine, k = {spec.evaluation.k}, T = {spec.evaluation.temperature:g}"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows if value is not None)
    return f"""# {spec.name}: a {config["architecture"]} backbone pretrained without labels

Trained by millionway: instance classification over all images (Liu et al., *Train a One-Million-Way Instance Classifier for
Unsupervised Visual Representation Learning*, AAAI 2021, arXiv 2102.04848). Output: the pooled feature. `spec.json` is the
whole specification of the run. No licence is attached to the weights: they are their owner's.

| | |
|---|---|
{table}

## Load
Needs timm (and PyTorch, safetensors), nothing of millionway.
```python
import timm

model = timm.create_model("local-dir:PATH/OF/THIS/FOLDER", pretrained=True).eval()
data = timm.data.resolve_data_config({{}}, model=model)  # mean, std and size of the training
```
{_small_images(size) if small else _images(size)}
## Prove the load
`sha256sum -c SHA256SUMS`, and
```python
import torch
from safetensors.torch import load_file

fixture = load_file("PATH/OF/THIS/FOLDER/fixture.safetensors")
with torch.no_grad():
    torch.testing.assert_close(model(fixture["input"]), fixture["expected"], rtol=1e-3, atol=1e-4)
```
or, where millionway is installed, `python -m trainer.export PATH/OF/THIS/FOLDER`.
"""


def _images(size: int) -> str:
    return f"""
`timm.data.create_transform(**data)` brings the shorter side to {size} pixels (bicubic), takes the centre and normalises.
"""


def _small_images(size: int) -> str:
    return f"""
The network was trained on {size} x {size} pixels with a 3x3 first convolution of stride 1. timm's class has a 7x7 convolution of
stride 2 in its place, which computes the same on an image whose pixels are doubled: **the input is {2 * size} x {2 * size}, made from
{size} x {size} by nearest neighbour.** For images of {size} x {size}, `timm.data.create_transform(**data)` does that. Bring images of
other sizes to {size} x {size} first:
```python
import torch
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

transform = Compose([Resize({size}, InterpolationMode.BICUBIC), CenterCrop({size}), ToTensor(), Normalize(data["mean"], data["std"])])
x = torch.nn.functional.interpolate(transform(image)[None], scale_factor=2, mode="nearest")
feature = model(x)
```
"""
