"""What is checked on the disk before a run is taken."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import admission
from service.admission import admit, count_images
from service.errors import InvalidSpec
from service.roots import inside
from service.spec import parse_spec
from tests.service.documents import document
from trainer.data.sources import list_source


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
    assert count_images(root, 100) == (len(list_source(str(root)).names), True) == (3, True)


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


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b", "data", "link"]), max_size=8))
def test_a_path_is_inside_where_the_system_takes_it_there(parts: list[str]) -> None:
    """Over random paths with `..` and a link to elsewhere: what is let in is, once opened, below the root, and as text too."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, "data")
        (root / "a" / "b").mkdir(parents=True)
        Path(directory, "elsewhere", "b").mkdir(parents=True)
        (root / "link").symlink_to("../elsewhere")
        path = "/".join([str(root), *parts])
        real, text = os.path.realpath(path), os.path.normpath(path)
        below = [found == str(root) or found.startswith(f"{root}/") for found in (real, text)]
        assert inside(path, [str(root)], on_disk=True) == all(below)
        assert inside(path, [str(root)], on_disk=False) == below[1]
        assert inside(path, [], on_disk=True)


def test_a_root_may_be_a_link_itself(tmp_path: Path) -> None:
    """An operator's mount point often is."""
    (tmp_path / "disk" / "images").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    roots = [str(tmp_path / "data")]
    assert inside(str(tmp_path / "data" / "images"), roots, on_disk=True)
    assert not inside(str(tmp_path / "disk" / "images"), roots, on_disk=True)
    assert not inside(f"{tmp_path}/data/\0", roots, on_disk=True)
    assert not inside(f"{tmp_path}/database", roots, on_disk=False)


@pytest.mark.parametrize("path", ["http://server/data/%2e%2e/home", "http://server/data/..%2Fhome", "s3://bucket/data/../home"])
def test_an_address_does_not_climb_out_of_its_root_encoded_or_not(path: str) -> None:
    """HTTP clients resolve `%2e%2e` before they ask."""
    with pytest.raises(InvalidSpec, match=r"give the address without \.\."):
        admit(parse_spec(document(data={"path": path})), shared_files=True, roots=["http://server/data", "s3://bucket/data"])


def test_of_a_path_elsewhere_it_is_not_said_whether_it_exists(tmp_path: Path) -> None:
    """The same words for a folder that is there and for one that is not."""
    (tmp_path / "data").mkdir()
    said = []
    (tmp_path / "there").mkdir()
    for path in (tmp_path / "there", tmp_path / "nowhere"):
        with pytest.raises(InvalidSpec) as refusal:
            admit(parse_spec(document(data={"path": str(path)})), shared_files=True, roots=[str(tmp_path / "data")])
        said.append(str(refusal.value).replace(str(path), "PATH"))
    assert said[0] == said[1]
