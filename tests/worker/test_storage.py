"""The runs directory: its id, the fence, and the folders that a run may read."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from service.layout import RunDir
from service.spec import RunSpec, parse_spec
from service.worker.offers import outside_roots
from service.worker.storage import STORAGE_FILE, check_storage, raise_fence, storage_id, write_pins


def test_all_workers_on_one_file_system_find_one_id(tmp_path: Path) -> None:
    """Also where they start at the same moment."""
    found: list[str] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait(5)
        found.append(storage_id(tmp_path / "runs"))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert storage_id(tmp_path / "other") not in found
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [STORAGE_FILE]


def test_another_file_system_in_the_same_place_is_noticed(tmp_path: Path) -> None:
    """A share that is not mounted any more leaves an empty folder."""
    runs = tmp_path / "runs"
    mine = storage_id(runs)
    check_storage(runs, mine)
    runs.rename(tmp_path / "away")
    runs.mkdir()
    with pytest.raises(OSError, match="is it mounted"):
        check_storage(runs, mine)


def test_the_fence_only_rises(tmp_path: Path) -> None:
    """An older attempt that comes late finds the newer one's number, and does not start."""
    run_dir = RunDir(tmp_path / "run")
    assert raise_fence(run_dir, 2) == 2
    assert raise_fence(run_dir, 2) == 2, "the other nodes of the attempt"
    assert raise_fence(run_dir, 1) == 2
    assert raise_fence(run_dir, 3) == 3
    assert run_dir.newest_attempt() == 3


def test_a_fence_that_many_raise_at_once_holds_the_highest(tmp_path: Path) -> None:
    """Whatever the order in which they come."""
    run_dir = RunDir(tmp_path / "run")
    threads = [threading.Thread(target=raise_fence, args=(run_dir, number)) for number in (3, 9, 1, 7, 5, 8, 2, 6, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert run_dir.newest_attempt() == 9


def test_pins_are_written_in_order(tmp_path: Path) -> None:
    """One list of steps, which the trainer reads before it removes a checkpoint."""
    write_pins(RunDir(tmp_path), [30, 10])
    assert json.loads((tmp_path / "pins.json").read_text()) == [10, 30]


def spec(path: Path | str, labelled: Path | None = None) -> RunSpec:
    evaluation = {"labelled": str(labelled)} if labelled else {}
    return parse_spec({"data": {"path": str(path)}, "schedule": {"steps": 10}, "evaluation": evaluation})


def test_folders_outside_of_the_roots_are_refused_with_field_value_and_roots(tmp_path: Path) -> None:
    """Links and `..` are resolved first, of the folder and of the root."""
    root, outside = tmp_path / "data", tmp_path / "secret"
    (root / "images").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (tmp_path / "alias").symlink_to(root)
    for allowed in (root, root / "images", tmp_path / "alias" / "images", root / "images" / ".." / "images"):
        assert outside_roots(spec(allowed), [root]) is None
        assert outside_roots(spec(allowed), [tmp_path / "alias"]) is None
    for refused in (outside, root / "link", f"{root}/../secret", tmp_path / "data2", "/"):
        why = outside_roots(spec(refused), [root])
        assert why is not None
        assert f"data.path is {str(refused)!r}" in why
        assert str(root) in why
    why = outside_roots(spec(root / "images", labelled=root / "link"), [root, tmp_path / "more"])
    assert why is not None
    assert "evaluation.labelled" in why
    assert str(outside) in why


def test_data_elsewhere_are_allowed_below_a_root_that_is_a_url(tmp_path: Path) -> None:
    """As a setting gives it, a path; the name of another bucket that begins alike is none below."""
    roots = [tmp_path, Path("s3://bucket/images")]
    assert outside_roots(spec("s3://bucket/images/2026"), roots) is None
    for refused in ("s3://bucket/images2", "s3://other", "s3://bucket/images/../keys", f"file://{tmp_path}"):
        assert "data.path is" in (outside_roots(spec(refused), roots) or "")


def test_without_a_root_every_folder_is_allowed() -> None:
    """The default: who may submit may read what the worker may."""
    assert outside_roots(spec("/anywhere"), []) is None
