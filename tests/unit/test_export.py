"""The exported backbone, loaded by plain timm."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.exports import MEAN, STD, TINY, export_to, make_spec, trained_state
from tests.images import noise
from trainer import export
from trainer.data.augment import evaluation_view
from trainer.data.loader import normalise
from trainer.encoder import build_encoder
from trainer.errors import DiskError
from trainer.export import export_backbone, verify_export
from trainer.torchvision_shim import import_timm


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return export_to(tmp_path / "export")


USER = """
import sys
import torch
try:  # torchvision's operators are missing where its build is not PyTorch's
    import torchvision
except RuntimeError:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm
from safetensors.torch import load_file

folder = sys.argv[1]
model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
data = timm.data.resolve_data_config({}, model=model)
fixture = load_file(folder + "/fixture.safetensors")
with torch.no_grad():
    features = model(fixture["input"])
torch.testing.assert_close(features, fixture["expected"], rtol=1e-4, atol=1e-5)
assert not any(name.startswith(("trainer", "service")) for name in sys.modules)
print(list(features.shape), list(data["input_size"]), list(data["mean"]), list(data["std"]), data["interpolation"], data["crop_pct"])
"""


def test_plain_timm_loads_the_folder_and_reproduces_the_fixture(exported: Path, tmp_path: Path) -> None:
    """A fresh process that has only torch and timm; its data configuration has our mean, std and (doubled) size."""
    user = subprocess.run(
        [sys.executable, "-c", USER, str(exported)], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert user.returncode == 0, user.stderr
    assert user.stdout.strip() == f"[2, 128] [3, 64, 64] {MEAN} {STD} nearest 1.0"


@pytest.mark.parametrize(
    ("backbone", "image_size"),
    [
        (TINY, 32),
        (TINY | {"stem": "standard"}, 32),
        ({"name": "resnet26"}, 64),
        ({"name": "seresnet18"}, 32),
        ({"name": "mobilenetv3_small_050"}, 32),
        ({"name": "vit_tiny_patch16_224", "args": {"img_size": 32}}, 32),
        ({"name": "convnext_atto"}, 64),
        ({"name": "swin_tiny_patch4_window7_224", "args": {"img_size": 56, "depths": [1, 1]}}, 56),
    ],
)
def test_every_kind_of_backbone_comes_out_as_it_was_trained(tmp_path: Path, backbone: dict[str, Any], image_size: int) -> None:
    """The fixture holds what our own backbone computes from the trained weights; timm's gives the same."""
    spec = make_spec(backbone, image_size)
    state = trained_state(spec)
    export_backbone(state, spec, tmp_path / "export", {})
    report = verify_export(tmp_path / "export")
    ours = build_encoder(spec).backbone
    ours.load_state_dict({name: state[name] for name in ours.state_dict()})
    fixture = load_file(tmp_path / "export" / "fixture.safetensors")
    images = fixture["input"]
    if images.shape[-1] == 2 * image_size:
        images = images[:, :, ::2, ::2]
    with torch.no_grad():
        features = ours.eval()(images)
    assert features.std() > 1e-3
    assert not torch.allclose(features[0], features[1])
    torch.testing.assert_close(fixture["expected"], features)
    assert report.num_tensors == len(ours.state_dict())
    assert report.num_features == features.shape[1]


@pytest.mark.parametrize("image_size", [32, 64])
def test_timms_transform_prepares_an_image_as_the_evaluation_does(tmp_path: Path, image_size: int) -> None:
    """For images of the trained size, to the bit under the small stem too, whose input is the doubled image."""
    spec = make_spec(TINY, image_size)
    export_backbone(trained_state(spec), spec, tmp_path / "export", {})
    timm = import_timm()
    model = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    image = noise(0, image_size, image_size)
    view = normalise(torch.from_numpy(evaluation_view(image, image_size)).permute(2, 0, 1)[None], MEAN, STD)
    doubled = view.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(transform(Image.fromarray(image))[None], doubled if image_size == 32 else view, rtol=0, atol=1e-5)


def test_a_photograph_is_prepared_nearly_alike_by_timm_and_by_the_evaluation(tmp_path: Path) -> None:
    """Pillow's antialiased bicubic against OpenCV's area: under 2 % of the range apart on average."""
    spec = make_spec(TINY, 64)
    export_backbone(trained_state(spec), spec, tmp_path / "export", {})
    timm = import_timm()
    model = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    photograph = cv2.GaussianBlur(noise(0, 300, 401), (0, 0), 3)
    ours = normalise(torch.from_numpy(evaluation_view(photograph, 64)).permute(2, 0, 1)[None], MEAN, STD)
    theirs = transform(Image.fromarray(photograph))[None]
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().mean() * np.mean(STD)) < 0.02


def test_a_user_can_fine_tune_the_export_on_classes_of_their_own(exported: Path) -> None:
    """timm adds a head of the asked size over the loaded backbone."""
    model = import_timm().create_model(f"local-dir:{exported}", pretrained=True, num_classes=7)
    weights = load_file(exported / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_the_folder_states_what_it_holds(exported: Path) -> None:
    """The model card names run, data size and accuracy; the checksums are those that `sha256sum -c` reads; the report counts."""
    card = (exported / "README.md").read_text()
    for words in ("finches", "resnet18", "1797", "97.25", "local-dir:", "scale_factor=2", "fixture.safetensors"):
        assert words in card
    for line in (exported / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    assert sorted(path.name for path in exported.iterdir()) == sorted([*export.FILES, "SHA256SUMS"])
    assert "60 of 60 tensors loaded" in str(verify_export(exported))


def test_an_older_export_is_replaced_whole(exported: Path) -> None:
    """Also where an earlier attempt died half-way; nothing but the new folder is left."""
    (exported.parent / ".export.tmp").mkdir()
    (exported.parent / ".export.tmp" / "model.safetensors").write_bytes(b"half")
    spec = make_spec(TINY | {"stem": "standard"})
    export_backbone(trained_state(spec), spec, exported, {})
    assert [path.name for path in exported.parent.iterdir()] == ["export"]
    assert json.loads((exported / "config.json").read_text())["pretrained_cfg"]["input_size"] == [3, 32, 32]


def test_an_export_that_cannot_be_written_leaves_the_older_one_and_says_where(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full half-way."""

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(export, "write_whole", full)
    with pytest.raises(DiskError, match=f"{exported}.*No space left on device.*make room"):
        export_backbone(trained_state(make_spec(TINY)), make_spec(TINY), exported, {})
    verify_export(exported)
