"""The run's directory, where trainer and worker meet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.layout import BEAT_BYTES, Beat, RunDir, read_beat, write_beat, write_whole


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that dies before the rename leaves the old content."""
    path = tmp_path / "spec.json"
    write_whole(path, "old")

    def power_cut(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", power_cut)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new" * 1000)
    assert path.read_text() == "old"


def test_each_attempt_has_its_own_spool_and_logs(tmp_path: Path) -> None:
    """Sorted by name they are sorted by number."""
    run = RunDir(tmp_path)
    paths = [run.attempt(number).path for number in (1, 2, 10)]
    assert paths == sorted(paths)
    assert run.attempt(2).rank_log(3) == tmp_path / "attempts" / "0002" / "rank-3.log"


def test_the_fence_names_the_newest_attempt(tmp_path: Path) -> None:
    """0 before the first, and where its text is no number."""
    run = RunDir(tmp_path)
    assert run.newest_attempt() == 0
    write_whole(run.fence, "3")
    assert run.newest_attempt() == 3
    write_whole(run.fence, "")
    assert run.newest_attempt() == 0


def test_a_beat_goes_over_the_last_one(tmp_path: Path) -> None:
    """Also where the new one is shorter: one line of fixed width, which a reader sees whole."""
    path = tmp_path / "rank-0"
    assert read_beat(path) is None
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for beat in (
            Beat(step=10**9, phase="evaluating", count=10**9, time=1234567890.125),
            Beat(step=1, phase="prior", count=2, time=3.0),
        ):
            write_beat(descriptor, beat)
            assert read_beat(path) == beat
            assert path.stat().st_size == BEAT_BYTES
    finally:
        os.close(descriptor)
    path.write_text("{half")
    assert read_beat(path) is None
