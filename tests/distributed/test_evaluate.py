"""Evaluation over several ranks against one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service.spec import RunSpec
from tests.distributed.launch import on_ranks
from tests.images import noise_folder
from trainer import evaluate
from trainer.data.images import index_images
from trainer.evaluate import evaluate_knn, extract_features, load_labelled

CPU = torch.device("cpu")


class CountingBackbone(nn.Module):
    """Counts its batches: under ZeRO-3 a rank that ran one less would leave the others waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return images.flatten(1)[:, ::7]


def make_spec(root: Path) -> RunSpec:
    return RunSpec.model_validate(
        {
            "data": {"path": str(root), "image_size": 16},
            "schedule": {"epochs": 1},
            "evaluation": {"labelled": str(root), "k": 3},
        }
    )


def features_and_accuracy(root: Path, few: Path, directory: Path) -> dict[str, Any]:
    """All that the test compares, in one go: starting processes is what takes the time."""
    evaluate.BATCH_SIZE = 4
    spec, backbone, unreadable = make_spec(root), CountingBackbone(), dict[str, str]()
    return {
        "unreadable": unreadable,
        "features": extract_features(backbone, index_images(root, directory / "root"), spec, CPU),
        "accuracy": evaluate_knn(nn.Flatten(), spec, load_labelled(spec.evaluation, directory), CPU, None, unreadable),
        "sizes": tuple(backbone.sizes),
        "few": extract_features(backbone, index_images(few, directory / "few"), spec, CPU),
    }


@pytest.mark.distributed
def test_three_ranks_have_the_features_and_the_accuracy_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """31 images do not divide by three, and of 2 one rank has none; each rank runs the same batches, and all know the result and what
    they could not read."""
    monkeypatch.setattr(evaluate, "BATCH_SIZE", 4)
    root, few = tmp_path / "images", noise_folder(tmp_path / "few", 2)
    noise_folder(root / "cat", 16)
    noise_folder(root / "dog", 15)
    (root / "dog/003.png").write_bytes(b"")
    (root / "dog/010.png").write_bytes(b"no image")
    alone = features_and_accuracy(root, few, tmp_path / "indices")
    ranks = on_ranks(3, tmp_path, features_and_accuracy, root, few, tmp_path / "indices")
    assert {rank["sizes"] for rank in ranks} == {(4, 4, 3)}
    for rank in ranks:
        assert torch.equal(rank["features"], alone["features"])
        assert torch.equal(rank["few"], alone["few"])
        assert rank["accuracy"] == alone["accuracy"]
        assert rank["unreadable"] == alone["unreadable"] == {"dog/003.png": "empty", "dog/010.png": "undecodable"}
