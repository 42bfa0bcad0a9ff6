"""Checkpoints are whole or absent, also when a rank cannot write, and the right ones are kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from service.layout import write_whole
from tests.distributed.launch import on_ranks
from tests.distributed.test_engine import build, saved_on, spec_for
from trainer.checkpoint import list_checkpoints, newest_checkpoint, remove_old_checkpoints


def complete(directory: Path, step: int, knn: float | None = None) -> Path:
    """A checkpoint with one small file."""
    path = directory / f"step-{step:09d}"
    path.mkdir(parents=True)
    (path / "encoder.safetensors").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    files = {"encoder.safetensors": {"sha256": sha256, "bytes": 7}}
    write_whole(path / "manifest.json", json.dumps({"format": 1, "step": step, "knn": knn, "files": files}))
    return path


def test_a_half_written_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    """Without its final name, without its manifest, with a changed or a missing file: the newest whole one is taken."""
    complete(tmp_path, 10)
    complete(tmp_path, 20).rename(tmp_path / ".step-000000020.tmp")
    (complete(tmp_path, 30) / "manifest.json").unlink()
    (complete(tmp_path, 40) / "encoder.safetensors").write_bytes(b"weighty")
    (complete(tmp_path, 50) / "encoder.safetensors").unlink()
    saved = newest_checkpoint(tmp_path)
    assert saved is not None
    assert saved.step == 10


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    """A first attempt finds nothing, not even the directory."""
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    """keep_last newest by step, and the one with the highest kNN accuracy."""
    for step, knn in ((10, 40.0), (20, 60.0), (30, None), (40, 50.0), (50, 55.0)):
        complete(tmp_path, step, knn)
    removed = remove_old_checkpoints(tmp_path, keep_last=2, keep_best=True)
    assert [path.name for path in removed] == ["step-000000010", "step-000000030"]
    assert [saved.step for saved in list_checkpoints(tmp_path)] == [20, 40, 50]
    remove_old_checkpoints(tmp_path, keep_last=1, keep_best=False)
    assert [saved.step for saved in list_checkpoints(tmp_path)] == [50]


def failing_to_save(spec: Any, directory: str) -> str:
    from trainer.checkpoint import save_checkpoint
    from trainer.errors import DiskError

    engine, classifier = build(spec)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    try:
        save_checkpoint(Path(directory), 1, engine, classifier, spec, images_sha256="x", knn=None, rank=rank, world_size=world_size)
    except DiskError as error:
        return str(error)
    return "saved"


@pytest.mark.distributed
def test_when_one_rank_cannot_write_all_ranks_say_so(tmp_path: Path) -> None:
    """Here only rank 0 makes the directory, and cannot: a file stands in its place. No rank is left waiting."""
    blocked = tmp_path / "checkpoints"
    blocked.write_text("not a directory")
    for message in on_ranks(2, tmp_path, failing_to_save, spec_for(2, 0), str(blocked)):
        assert "rank 0: " in message
        assert "make room" in message


@pytest.mark.distributed
def test_a_checkpoint_reads_without_us(tmp_path: Path) -> None:
    """numpy and safetensors are enough for the rows: shards in the order of their names."""
    import numpy as np
    from safetensors.numpy import load_file

    ranks = on_ranks(2, tmp_path, saved_on, spec_for(2, 0), str(tmp_path / "checkpoints"))
    (path,) = (tmp_path / "checkpoints").iterdir()
    rows = np.concatenate([load_file(shard)["rows"] for shard in sorted(path.glob("shard-*"))])
    assert (rows == np.concatenate([result["rows"].numpy() for result in ranks])).all()
