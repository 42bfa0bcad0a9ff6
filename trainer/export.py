"""The trained backbone as a folder that plain timm loads, with the proof that it loaded.

    model.safetensors     weights under timm's names
    config.json           architecture, arguments, input size, mean and std: what timm.create_model("local-dir:...") reads
    fixture.safetensors   an input and the feature that the trained backbone gave for it
    spec.json             the run's specification
    README.md             model card
    SHA256SUMS            of all of the above; `sha256sum -c SHA256SUMS`

`python -m trainer.export FOLDER` loads the folder as a user would and compares.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from service.layout import write_whole
from service.spec import RunSpec, stored_spec
from trainer.data.loader import normalise
from trainer.durable import sha256, sync
from trainer.encoder import create_backbone, small_stem, use_small_stem, widen_stem
from trainer.errors import BadExport, DiskError
from trainer.fence import Fence
from trainer.model_card import model_card
from trainer.torchvision_shim import import_timm

FILES = ("README.md", "config.json", "fixture.safetensors", "model.safetensors", "spec.json")
TOLERANCE = 1e-4
"""Largest difference from the fixture, relative to its largest value: other kernels sum in another order."""


def export_backbone(
    backbone_state: Mapping[str, Tensor], spec: RunSpec, directory: Path, metrics: Mapping[str, Any], fence: Fence | None = None
) -> None:
    """Write the folder, whole or not at all; an older one is replaced. Raises Fenced where a newer attempt of the run has begun.

    `backbone_state` holds the backbone's tensors under our names, on the CPU; `metrics` (e.g. num_images, epochs, knn) goes
    into the model card.
    """
    backbone = create_backbone(spec.backbone.name, spec.backbone.args, spec.data.channels)
    small = small_stem(spec, backbone)
    if small:
        use_small_stem(backbone)
    # Only what timm's state dict names: buffers that a module computes for itself are not part of the weights.
    backbone.load_state_dict({name: backbone_state[name] for name in backbone.state_dict()})
    images = _fixture_images(spec)
    with torch.no_grad():
        expected = backbone.eval()(images)
    weights = {name: tensor.contiguous().clone() for name, tensor in backbone.state_dict().items()}
    if small:
        weights["conv1.weight"] = widen_stem(weights["conv1.weight"])
        images = F.interpolate(images, scale_factor=2, mode="nearest")

    fixture = {"input": images.contiguous(), "expected": expected.contiguous()}
    config = _timm_config(backbone, spec, expected.shape[1], small=small)
    contents = {
        "model.safetensors": save(weights, metadata={"format": "pt"}),
        "fixture.safetensors": save(fixture),
        "config.json": f"{json.dumps(config, indent=2)}\n".encode(),
        "spec.json": f"{spec.model_dump_json(indent=2)}\n".encode(),
        "README.md": model_card(spec, config, metrics, small=small).encode(),
    }
    sums = "".join(f"{hashlib.sha256(contents[name]).hexdigest()}  {name}\n" for name in FILES)
    try:
        _replace_folder(directory, contents | {"SHA256SUMS": sums.encode()}, fence)
    except OSError as error:
        raise DiskError(f"the export cannot be written to {str(directory)!r} ({error.strerror}): make room there") from error


def _replace_folder(directory: Path, contents: Mapping[str, bytes], fence: Fence | None) -> None:
    """Write a folder of these files beside `directory` and put it in its place."""
    if fence is not None:
        fence.check()
    for left in directory.parent.glob(f".{directory.name}.*"):  # by attempts that were killed
        shutil.rmtree(left, ignore_errors=True)
    # A name of its own: an attempt that was thought dead may write at the same time.
    temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(6)}.tmp")
    outdated = directory.with_name(f".{directory.name}.{secrets.token_hex(6)}.old")
    temporary.mkdir(parents=True)
    for name, content in contents.items():
        write_whole(temporary / name, content)
    sync(temporary)
    if fence is not None:
        fence.check()
    if directory.exists():
        directory.rename(outdated)
    temporary.rename(directory)
    sync(directory.parent)
    shutil.rmtree(outdated, ignore_errors=True)


def _timm_config(backbone: nn.Module, spec: RunSpec, num_features: int, *, small: bool) -> dict[str, Any]:
    """timm's config.json. A small stem takes images of twice the size, each pixel doubled (trainer.encoder.widen_stem)."""
    size = 2 * spec.data.image_size if small else spec.data.image_size
    architecture = backbone.pretrained_cfg
    return {
        "architecture": spec.backbone.name,
        "num_classes": 0,
        "num_features": num_features,
        "model_args": _model_args(spec),
        "pretrained_cfg": {
            "tag": "millionway",
            "custom_load": False,
            "input_size": [spec.data.channels, size, size],
            "fixed_input_size": architecture.get("fixed_input_size", False),
            "interpolation": "nearest" if small else "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(spec.data.mean),
            "std": list(spec.data.std),
            "num_classes": 0,
            # Named, timm would take its weights for those of three channels.
            "first_conv": architecture.get("first_conv") if spec.data.channels == 3 else None,
            "classifier": architecture.get("classifier"),
            "license": "unspecified",
            "description": f"Self-supervised backbone, run {spec.name!r}",
            "paper_ids": "arXiv:2102.04848",
        },
    }


def _model_args(spec: RunSpec) -> dict[str, Any]:
    channels = {} if spec.data.channels == 3 else {"in_chans": spec.data.channels}
    return {**spec.backbone.args, **channels}


def _fixture_images(spec: RunSpec) -> Tensor:
    """Two normalised images of noise, [2, C, S, S]."""
    size = spec.data.image_size
    noise = torch.randint(0, 256, (2, spec.data.channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return normalise(noise, spec.data.mean, spec.data.std)


@dataclass(frozen=True)
class VerifyReport:
    """What `verify_export` found."""

    directory: Path
    architecture: str
    num_tensors: int
    """Tensors in the file, each of them equal to the loaded model's of the same name; the model has no other."""
    num_parameters: int
    num_features: int
    difference: float
    """Largest difference from the fixture, relative to its largest value."""

    def __str__(self) -> str:
        return (
            f"{self.directory}: {self.architecture}, {self.num_tensors} of {self.num_tensors} tensors loaded "
            f"({self.num_parameters:,} parameters), features of length {self.num_features} differ from the fixture by "
            f"{self.difference:.1e} (at most {TOLERANCE:.0e}), checksums match"
        )


def verify_export(directory: Path) -> VerifyReport:
    """Load the folder by plain timm and prove the load. Raises BadExport with the reason."""
    _check_files(directory)
    timm = import_timm()
    try:
        config = json.loads((directory / "config.json").read_text())
        spec = stored_spec((directory / "spec.json").read_text())
        weights, fixture = load_file(directory / "model.safetensors"), load_file(directory / "fixture.safetensors")
        model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
        with torch.no_grad():
            features = model(fixture["input"])
    except Exception as error:  # whatever timm and safetensors raise on a damaged folder
        raise BadExport(f"{directory}: timm cannot load it: {type(error).__name__}: {error}") from error

    loaded = model.state_dict()
    if wrong := sorted(loaded.keys() ^ weights.keys()) or [name for name in weights if not torch.equal(weights[name], loaded[name])]:
        raise BadExport(f"{directory}: {len(wrong)} of {len(loaded)} tensors did not load, the first is {wrong[0]!r}: export again")
    _check_preprocessing(directory, config, spec, timm.data.resolve_data_config({}, model=model), fixture["input"])
    expected = fixture["expected"]
    if features.shape != expected.shape:
        raise BadExport(f"{directory}: features have shape {list(features.shape)}, the fixture's {list(expected.shape)}: export again")
    difference = ((features - expected).abs().max() / expected.abs().max()).item()
    if not difference <= TOLERANCE:  # also where it is NaN
        raise BadExport(f"{directory}: features differ from the fixture by {difference:.1e} of its largest value: export again")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return VerifyReport(directory, config["architecture"], len(loaded), num_parameters, features.shape[1], difference)


def _check_files(directory: Path) -> None:
    try:
        lines = (directory / "SHA256SUMS").read_text().splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        for name in FILES:
            if sha256(directory / name) != sums.get(name):
                raise BadExport(f"{directory}: {name} is not the file that was exported (SHA256SUMS): copy or export it again")
    except OSError as error:
        raise BadExport(
            f"{directory}: {error.filename} cannot be read ({error.strerror}): copy the whole folder, or export again"
        ) from None


def _check_preprocessing(directory: Path, config: dict[str, Any], spec: RunSpec, data: dict[str, Any], images: Tensor) -> None:
    """What timm would feed the model is what the run trained it on."""
    wanted = {"mean": spec.data.mean, "std": spec.data.std, "input_size": images.shape[1:], "crop_pct": (1.0,)}
    for name, value in wanted.items():
        found = data[name] if isinstance(data[name], list | tuple) else (data[name],)
        if tuple(found) != tuple(value):
            raise BadExport(f"{directory}: config.json gives {name} {list(found)}, the run had {list(value)}: export again")
    if (config["architecture"], config["model_args"]) != (spec.backbone.name, _model_args(spec)):
        raise BadExport(f"{directory}: config.json names {config['architecture']}, the run trained {spec.backbone.name}: export again")


def main(arguments: list[str]) -> int:
    """`python -m trainer.export FOLDER`: 0 and a report, or 1 and the reason."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m trainer.export FOLDER\n")
        return 2
    try:
        report = verify_export(Path(arguments[0]))
    except BadExport as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{report}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
