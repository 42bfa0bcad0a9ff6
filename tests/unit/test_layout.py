"""The run's directory, where trainer and worker meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.layout import RunDir, write_whole


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
