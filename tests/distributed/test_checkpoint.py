"""Checkpoints are whole or absent, also when a rank cannot write, and the right ones are kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from service.layout import RunDir, write_whole
from tests.distributed.launch import on_ranks
from tests.distributed.test_engine import build, save, saved_on, spec_for
from trainer.checkpoint_files import list_checkpoints, newest_checkpoint, old_checkpoints, read_pins, remove_checkpoints
from trainer.fence import Fence, Fenced


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


def test_the_last_the_best_and_the_pinned_are_kept(tmp_path: Path) -> None:
    """keep_last newest by step, the one with the highest kNN accuracy, and those that a person pinned."""
    run, fence = RunDir(tmp_path), Fence(RunDir(tmp_path), 1)
    for step, knn in ((10, 40.0), (20, 60.0), (30, None), (40, 50.0), (50, 55.0)):
        complete(run.checkpoints, step, knn)
    write_whole(run.pins, "[30, 700]")
    old = old_checkpoints(run.checkpoints, 2, True, read_pins(run.pins))
    assert [path.name for path in old] == ["step-000000010"]
    remove_checkpoints(run.checkpoints, old, fence)
    assert [saved.step for saved in list_checkpoints(run.checkpoints)] == [20, 30, 40, 50]
    run.pins.unlink()
    remove_checkpoints(run.checkpoints, old_checkpoints(run.checkpoints, 1, False, read_pins(run.pins)), fence)
    assert [saved.step for saved in list_checkpoints(run.checkpoints)] == [50]


def test_pins_that_cannot_be_read_remove_nothing(tmp_path: Path) -> None:
    """Better a full disk than a lost checkpoint that somebody wanted."""
    for content in ("{", "3", '["a"]'):
        (tmp_path / "pins.json").write_text(content)
        with pytest.raises(ValueError):  # noqa: PT011 - which of them does not matter
            read_pins(tmp_path / "pins.json")


def test_an_attempt_behind_the_fence_removes_nothing(tmp_path: Path) -> None:
    """A newer attempt may be about to start from what an old one finds superfluous."""
    run = RunDir(tmp_path)
    for step in (10, 20):
        complete(run.checkpoints, step)
    write_whole(run.fence, "2")
    with pytest.raises(Fenced, match="attempt 2 of this run has begun"):
        remove_checkpoints(run.checkpoints, [run.checkpoint(10)], Fence(run, 1))
    assert len(list_checkpoints(run.checkpoints)) == 2
    remove_checkpoints(run.checkpoints, [run.checkpoint(10)], Fence(run, 2))
    assert [saved.step for saved in list_checkpoints(run.checkpoints)] == [20]


def test_what_a_killed_attempt_had_half_removed_is_removed_with_the_next(tmp_path: Path) -> None:
    """Gigabytes else stay for good, and a checkpoint of the same step could never be removed."""
    run = RunDir(tmp_path)
    complete(run.checkpoints, 10).rename(run.checkpoints / ".step-000000010.removed")
    for step in (10, 20):
        complete(run.checkpoints, step)
    remove_checkpoints(run.checkpoints, [run.checkpoint(10)], Fence(run, 1))
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000000020"]


def failing_to_save(spec: Any, directory: str) -> str:
    from trainer.errors import DiskError

    engine, classifier = build(spec)
    try:
        save(Path(directory), 1, engine, classifier, spec)
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
    """numpy and safetensors are enough for the rows: shards in the order of their names. Other users may read them, as the API does."""
    import numpy as np
    from safetensors.numpy import load_file

    ranks = on_ranks(2, tmp_path, saved_on, spec_for(2, 0), str(tmp_path / "checkpoints"))
    (path,) = (tmp_path / "checkpoints").iterdir()
    rows = np.concatenate([load_file(shard)["rows"] for shard in sorted(path.glob("shard-*"))])
    assert (rows == np.concatenate([result["rows"].numpy() for result in ranks])).all()
    assert {oct(file.stat().st_mode)[-3:] for file in path.glob("*.safetensors")} == {"644"}


class PassedLate(Fence):
    """A newer attempt begins while the files are written."""

    @property
    def passed(self) -> bool:
        begun = super().passed
        write_whole(self.run_dir.fence, "2")
        return begun


def saved_behind_the_fence(spec: Any, directory: str) -> list[str]:
    engine, classifier = build(spec)
    run = RunDir(Path(directory))
    messages = []
    for fence in (PassedLate(run, 1), Fence(run, 1)):
        try:
            save(run.checkpoints, 3, engine, classifier, spec, fence=fence)
        except Fenced as fenced:
            messages.append(str(fenced))
    return messages


@pytest.mark.distributed
def test_an_attempt_behind_the_fence_publishes_no_checkpoint(tmp_path: Path) -> None:
    """Neither where the newer one began while it wrote, nor where it had begun before: then it writes nothing at all. All ranks
    learn it from rank 0."""
    run = RunDir(tmp_path)
    for messages in on_ranks(2, tmp_path, saved_behind_the_fence, spec_for(2, 0), str(tmp_path)):
        assert [message.rpartition(" ")[2] for message in messages] == ["published", "written"]
    assert list_checkpoints(run.checkpoints) == []
    assert [path.name for path in run.checkpoints.iterdir()] == [".step-000000003.attempt-0001.tmp"]
