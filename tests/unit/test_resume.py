"""Where an attempt starts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from service.spec import RunSpec, merge
from trainer.checkpoint_files import MANIFEST, list_checkpoints, record_knn
from trainer.errors import BadData, BadSpec
from trainer.process import check_world_size
from trainer.resume import find_start, resize_warning
from trainer.schedule import make_plan


def spec(**changes: Any) -> RunSpec:
    base = {"data": {"path": "/images"}, "optimizer": {"global_batch_size": 20}, "schedule": {"epochs": 5}}
    return RunSpec.model_validate(merge(base, changes))


def checkpoint(directory: Path, step: int, of: RunSpec) -> Path:
    """A whole one, with one small file."""
    path = directory / f"step-{step:09d}"
    path.mkdir(parents=True)
    (path / "encoder.safetensors").write_bytes(b"weights")
    files = {"encoder.safetensors": {"sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7}}
    about = {"format": 1, "step": step, "knn": None, "files": files, "world_size": 2, "spec": of.model_dump(mode="json")}
    (path / MANIFEST).write_text(json.dumps(about))
    return path


def start(own: Path, start_from: Path | None, child: RunSpec) -> int | None:
    """The step of the checkpoint found, for 60 images in steps of 20."""
    found = find_start(own, start_from, child, make_plan(child, 60))
    return found.step if found else None


def test_the_runs_own_checkpoint_goes_before_the_one_it_was_forked_from(tmp_path: Path) -> None:
    """Without either it begins at the beginning."""
    own = tmp_path / "own"
    assert start(own, None, spec()) is None
    parent = checkpoint(tmp_path / "parent", 12, spec())
    assert start(own, parent, spec()) == 12
    checkpoint(own, 14, spec())
    assert start(own, parent, spec()) == 14


def test_a_fork_that_cannot_go_on_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Another seed, a schedule that ends before the step by the images that there are, a damaged checkpoint, and none."""
    own, parent = tmp_path / "own", checkpoint(tmp_path / "parent", 12, spec())
    with pytest.raises(BadSpec, match=r"^seed is 1 and 0 in the run"):
        start(own, parent, spec(seed=1))
    with pytest.raises(BadSpec, match=r"12 steps long \(4 epochs\) and checkpoint .* stands at step 12"):
        start(own, parent, spec(schedule={"epochs": 4}))
    with pytest.raises(BadData, match="no checkpoint to start from"):
        start(own, tmp_path / "nowhere", spec())
    (parent / "encoder.safetensors").write_bytes(b"weighty")
    with pytest.raises(BadData, match=r"is damaged: encoder\.safetensors"):
        start(own, parent, spec())


def test_an_evaluation_made_up_for_is_noted_in_its_checkpoint(tmp_path: Path) -> None:
    """Among those to keep it counts with its accuracy."""
    checkpoint(tmp_path, 12, spec())
    (saved,) = list_checkpoints(tmp_path)
    record_knn(saved, 81.5)
    (noted,) = list_checkpoints(tmp_path)
    assert (saved.knn, noted.knn) == (None, 81.5)
    assert noted.manifest == saved.manifest | {"knn": 81.5}


def test_a_resize_is_warned_of_where_batch_norm_sees_another_number_of_images(tmp_path: Path) -> None:
    """Not on the same number of ranks, not with synchronised BatchNorm, not without any."""
    checkpoint(tmp_path, 12, spec())
    (saved,) = list_checkpoints(tmp_path)
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert "from 5 images where it took them from 10" in str(resize_warning(saved, network, spec(), 4))
    assert resize_warning(saved, network, spec(), 2) is None
    assert resize_warning(saved, network, spec(backbone={"batch_norm": "synchronised"}), 4) is None
    assert resize_warning(saved, nn.Linear(2, 2), spec(), 4) is None


def test_a_number_of_ranks_that_the_batch_does_not_allow_is_refused() -> None:
    """The scheduler offers only what service.sections.Resources.shapes lists; all of that is taken."""
    elastic = spec(resources={"nodes": 2, "ranks_per_node": 2, "min_ranks": 1})
    shapes = elastic.resources.shapes(elastic.optimizer.global_batch_size)
    assert shapes == [(2, 2), (1, 2), (1, 1)]
    for nodes, ranks in shapes:
        check_world_size(elastic, nodes * ranks)
    with pytest.raises(BadSpec, match="not divisible by the 3 ranks of this attempt"):
        check_world_size(elastic, 3)
    with pytest.raises(BadSpec, match="at least 4 images on each: give it at most 5 ranks"):
        check_world_size(elastic, 10)
