"""What `python -m trainer.export` refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.exports import export_to
from trainer import export
from trainer.errors import BadExport
from trainer.export import main, verify_export


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return export_to(tmp_path / "export")


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def drop_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["layer2.0.bn1.running_mean"]
    save_file(weights, folder / "model.safetensors")
    renew_checksums(folder)


def change_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["layer1.0.conv1.weight"] += 0.01
    save_file(weights, folder / "model.safetensors")
    renew_checksums(folder)


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            (config if name in config else config["pretrained_cfg"])[name] = value
        (folder / "config.json").write_text(json.dumps(config))
        renew_checksums(folder)

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def renew_checksums(folder: Path) -> None:
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in export.FILES]
    (folder / "SHA256SUMS").write_text("".join(sums))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "model.safetensors is not the file that was exported"),
        (drop_a_tensor, "layer2.0.bn1.running_mean"),
        (change_a_weight, "features differ from the fixture by"),
        (change_config(mean=[0.485, 0.456, 0.406]), "config.json gives mean [0.485, 0.456, 0.406], the run had [0.5, 0.4, 0.3]"),
        (change_config(input_size=[3, 32, 32]), "config.json gives input_size [3, 32, 32], the run had [3, 64, 64]"),
        (change_config(model_args={}), "timm cannot load it: RuntimeError: Error(s) in loading state_dict"),
        (change_config(architecture="resnet"), "Unknown model"),
        (change_config(num_classes=10), "timm cannot load it"),
        (remove("fixture.safetensors"), "fixture.safetensors cannot be read (No such file or directory)"),
        (remove("SHA256SUMS"), "SHA256SUMS cannot be read"),
    ],
)
def test_a_damaged_export_is_refused_with_the_reason(
    exported: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], message: str
) -> None:
    """Also where the checksums were made to fit. `python -m trainer.export` then exits with 1."""
    assert main([str(exported)]) == 0
    assert "60 of 60 tensors" in capsys.readouterr().out
    damage(exported)
    with pytest.raises(BadExport) as refused:
        verify_export(exported)
    assert message in str(refused.value)
    assert str(exported) in str(refused.value)
    assert main([str(exported)]) == 1
    assert message in capsys.readouterr().err


def test_the_command_wants_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """Usage, and exit code 2."""
    assert main([]) == 2
    assert "usage: python -m trainer.export FOLDER" in capsys.readouterr().err
