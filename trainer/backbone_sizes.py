"""Writes service/backbone_sizes.txt, from which a plan knows what a backbone holds: `python -m trainer.backbone_sizes > FILE`.

Every architecture of service/backbones.txt, and every backbone of a preset, goes forward and backward on the meta device: shapes
only, no numbers. Minutes on one core.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
import weakref
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from service.presets import PRESETS
from service.spec import parse_spec
from trainer.encoder import create_backbone, small_stem
from trainer.errors import BadSpec
from trainer.torchvision_shim import import_timm

HEADER = """# What backbones hold; tab-separated; `python -m trainer.backbone_sizes` with timm {version} on the meta device; `-`: not known.
# name, constructor's arguments, stem that images under 64 pixels may have, pixels of the measured images, length of the features,
# parameters, bytes that one image adds to the peak of a forward and backward pass in fp32"""
BATCH = 32
SIZES = (224, 256, 384, 448, 512, 336, 288, 240, 192)
"""Pixels to try, in this order, after the architecture's own: some take one size only."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, but for those of `others`."""

    def __init__(self, others: Sequence[Tensor]) -> None:
        super().__init__()
        self._others = {_key(tensor) for tensor in others}
        self._sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := _key(tensor)) not in self._others and key not in self._sizes:
                storage = tensor.untyped_storage()
                self._sizes[key] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.forget, key)
        return result

    def forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


class FusedAttention(torch.autograd.Function):
    """What fused attention keeps for the backward pass, where the meta device would have the plain one: no matrix of scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1]))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def measure(model: nn.Module, pixels: int) -> tuple[int, float]:
    """Length of the features, and the bytes that one image adds to the peak of a forward and backward pass in fp32."""
    model.train()
    with LiveBytes([*model.parameters(), *model.buffers()]) as meter:

        def is_no_activation(parameter: Tensor) -> None:
            meter.forget(_key(parameter.grad))  # type: ignore[arg-type]

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(is_no_activation)
        features = model(torch.empty(BATCH, 3, pixels, pixels, device="meta"))
        if features.ndim != 2:
            raise ValueError(f"features of shape {list(features.shape)}")
        features.sum().backward()
    return features.shape[1], meter.peak / BATCH


def line(name: str, args: dict[str, Any]) -> str:
    """One line of the file; `-` for what cannot be found out."""
    try:
        with torch.device("meta"):
            model = create_backbone(name, args)
    except BadSpec:  # a constructor that looks into its tensors
        model = create_backbone(name, args).to("meta")
    own = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[-1]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    pixels, features, activations = "-", "-", "-"
    for size in (224, own, *SIZES):
        with suppress(Exception):  # whatever a model of timm's thousand raises on a size, or on a tensor without numbers
            length, each = measure(model, size)
            pixels, features, activations = str(size), str(length), str(math.ceil(each))
            break
    small = {"data": {"path": "/", "image_size": 32}, "backbone": {"name": name, "args": args}, "schedule": {"epochs": 1}}
    stem = "small" if small_stem(parse_spec(small), model) else "-"
    return "\t".join((name, json.dumps(args, separators=(",", ":"), sort_keys=True), stem, pixels, features, str(parameters), activations))


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, enable_gqa: bool = False, **__: Any) -> Tensor:
    return FusedAttention.apply(query, key, value)  # type: ignore[no-any-return]


def main() -> None:
    warnings.simplefilter("ignore")
    F.scaled_dot_product_attention = _attention
    wanted = [(name, {}) for name in (files("service") / "backbones.txt").read_text().split()]
    backbones = [preset["backbone"] for preset in PRESETS.values()]
    wanted += [(backbone["name"], backbone["args"]) for backbone in backbones if backbone.get("args")]
    print(HEADER.format(version=import_timm().__version__))  # noqa: T201 - the file
    for name, args in wanted:
        try:
            print(line(name, args), flush=True)  # noqa: T201 - the file
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
