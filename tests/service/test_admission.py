"""What is checked on the disk before a run is taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service import admission
from service.admission import admit, count_images
from service.errors import InvalidSpec
from service.spec import parse_spec
from tests.service.documents import document
from trainer.data.images import index_images


def test_images_are_counted_below_the_folder_until_there_are_enough(tmp_path: Path) -> None:
    """Recursively, by suffix in any case; a folder of millions is not walked to its end."""
    for number in range(10):
        folder = tmp_path / f"{number}" / "deep"
        folder.mkdir(parents=True)
        (folder / "a.JPG").touch()
        (folder / "notes.txt").touch()
    assert count_images(tmp_path, 100) == (10, True)
    assert count_images(tmp_path, 3) == (3, False)


def test_the_images_counted_are_those_that_the_trainer_finds(tmp_path: Path) -> None:
    """Linked folders are followed, each once and without end; hidden files and folders are none; a folder is no image."""
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    for folder in (elsewhere, root / ".hidden", root / "folder.png", root / "sub"):
        folder.mkdir(parents=True)
    for file in (elsewhere / "a.png", root / "b.jpg", root / ".c.jpg", root / ".hidden" / "d.jpg", root / "sub" / "e.webp"):
        file.touch()
    (root / "link").symlink_to(elsewhere)
    (root / "again").symlink_to(elsewhere)
    (root / "loop").symlink_to(root)
    (root / "nowhere.png").symlink_to(root / "missing")
    assert count_images(root, 100) == (len(index_images(root)), True) == (3, True)


def test_a_folder_that_takes_too_long_is_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is one large folder without an image: the deadline counts within it."""
    for number in range(10):
        (tmp_path / f"{number}.txt").touch()
    monkeypatch.setattr(admission, "SCAN_SECONDS", -1.0)
    assert count_images(tmp_path, 1) == (0, False)


@pytest.mark.parametrize("path", ["/data/" + "x" * 300, "/" + "x/" * 2040, "/data/\0"])
def test_a_path_that_no_folder_can_have_is_refused(path: str) -> None:
    """A component of more than 255 bytes, a path of too many, a zero byte: the system's refusal is the person's."""
    with pytest.raises(InvalidSpec, match=r"data\.path is .*correct") as refusal:
        admit(parse_spec(document(data={"path": path})), shared_files=True)
    assert [error.field for error in refusal.value.errors] == ["data.path"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_a_folder_below_one_that_may_not_be_searched_is_refused(tmp_path: Path) -> None:
    """The message says where to look: above it."""
    (tmp_path / "above" / "images").mkdir(parents=True)
    (tmp_path / "above").chmod(0o600)
    try:
        with pytest.raises(InvalidSpec, match="may not look into a folder above it"):
            admit(parse_spec(document(data={"path": str(tmp_path / "above" / "images")})), shared_files=True)
    finally:
        (tmp_path / "above").chmod(0o700)


def test_a_link_to_itself_among_the_class_folders_is_none(tmp_path: Path) -> None:
    """It is no error of ours either."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for number in range(200):
        (tmp_path / "images" / f"{number}.png").touch()
    (tmp_path / "labels" / "loop").symlink_to(tmp_path / "labels" / "loop")
    sections = document(data={"path": str(tmp_path / "images")}, evaluation={"labelled": str(tmp_path / "labels")})
    with pytest.raises(InvalidSpec, match="no sub-folders"):
        admit(parse_spec(sections), shared_files=True)
