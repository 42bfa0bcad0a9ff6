"""The images of a run: duplicates, limits, names."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from service.spec import RunSpec
from tests.images import noise, write_image
from trainer.data.duplicates import load_groups
from trainer.data.images import Images, prepare_images
from trainer.data.index import Index
from trainer.errors import DiskError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight smooth images, of which the last three are copies of 1, 1 and 2."""
    for i in range(5):
        write_image(tmp_path / "images" / f"{i}.png", np.kron(noise(i, 6, 6), np.ones((8, 8, 1), np.uint8)))
    for i, of in ((5, 1), (6, 1), (7, 2)):
        shutil.copy(tmp_path / "images" / f"{of}.png", tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def prepared(folder: Path, directory: Path, **data: object) -> Images:
    spec = RunSpec.model_validate(
        {
            "data": {"path": str(folder), **data},
            "schedule": {"epochs": 1},
            "classifier": {"hardest_k": 2},
            "optimizer": {"global_batch_size": 4},
        }
    )
    return prepare_images(spec, directory, lambda: None)


def test_duplicates_are_kept_or_share_a_class_or_are_dropped(folder: Path, tmp_path: Path) -> None:
    """Classes are numbered in the order of their first images; each way has a name of its own."""
    kept, shared, dropped = (prepared(folder, tmp_path / way, duplicates=way) for way in ("keep", "share", "drop"))
    assert (len(kept), kept.num_classes) == (8, 8)
    assert (len(shared), shared.num_classes) == (8, 5)
    assert shared.classes(range(8)).tolist() == [0, 1, 2, 3, 4, 1, 1, 2]
    assert shared.first_of_class().tolist() == [0, 1, 2, 3, 4]
    assert [dropped.name(i) for i in range(len(dropped))] == [f"{i}.png" for i in range(5)]
    assert len({kept.sha256, shared.sha256, dropped.sha256}) == 3


def test_groups_that_were_found_before_are_not_searched_for_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later attempt of the run finds them beside its index."""
    first = prepared(folder, tmp_path / "index", duplicates="share")
    assert load_groups(Index(tmp_path / "index")) is not None
    monkeypatch.setattr("trainer.data.duplicates.find_duplicates", lambda *_, **__: pytest.fail("searched again"))
    assert prepared(folder, tmp_path / "index", duplicates="share").sha256 == first.sha256


def test_a_limit_counts_after_duplicates_were_dropped(folder: Path, tmp_path: Path) -> None:
    """And classes stay without gaps where some images of the group are not taken."""
    assert len(prepared(folder, tmp_path / "drop", duplicates="drop", limit=4)) == 4
    shared = prepared(folder, tmp_path / "share", duplicates="share", limit=4)
    assert len(shared) == 4
    assert sorted(set(shared.classes(range(4)).tolist())) == list(range(shared.num_classes))


def test_an_index_that_cannot_be_written_is_the_disks_fault_and_not_the_datas(folder: Path, tmp_path: Path) -> None:
    """So that the run is tried again, elsewhere; and nothing half is left."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError, match="make room there"):
        prepared(folder, tmp_path / "file" / "index")
