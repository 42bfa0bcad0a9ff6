"""What a pile of images can be."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.images import indexed, noise, noise_folder, write_image
from trainer.data import sources
from trainer.data.images import Images, default_index, index_images
from trainer.data.index import Listing, write_index
from trainer.data.reader import Reader, read_pixels
from trainer.data.sources import list_source
from trainer.errors import BadData, StorageError


def names(images: Images) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def pixels(images: Images) -> list[np.ndarray]:
    reader = Reader(images.index)
    return [read_pixels(reader, int(row)) for row in images.rows(range(len(images)))]


def labels(images: Images) -> list[str]:
    assert images.index.label_n is not None
    return [images.index.label_names[label] if label >= 0 else "-" for label in images.index.label_n]


def labelled_folder(root: Path) -> Path:
    for i in range(6):
        write_image(root / "ab"[i % 2] / f"{i}.png", noise(i))
    return root


def as_tar(folder: Path, path: Path) -> Path:
    """WebDataset's layout: key.png, key.cls."""
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*.png")):
            tar.add(file, f"{file.parent.name}-{file.stem}.png")
            label = file.parent.name.encode()
            member = tarfile.TarInfo(f"{file.parent.name}-{file.stem}.cls")
            member.size = len(label)
            tar.addfile(member, io.BytesIO(label))
    return path


def as_parquet(folder: Path, path: Path) -> Path:
    """Hugging Face's layout, of several row groups."""
    files = sorted(folder.rglob("*.png"))
    features = {"label": {"names": ["a", "b"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pyarrow.table(
        {
            "image": [{"bytes": file.read_bytes(), "path": str(file.relative_to(folder))} for file in files],
            "label": ["ab".index(file.parent.name) for file in files],
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path, row_group_size=4)
    return path


def test_images_are_found_in_all_folders_and_sorted_by_relative_path(tmp_path: Path) -> None:
    """Suffixes count in either case; hidden files and folders do not, and what else was found is counted by its suffix."""
    for name in ("b/2.JPG", "a/x/1.png", "c.webp", "a.tif", ".hidden/3.png", "b/.4.png"):
        write_image(tmp_path / name, noise(0))
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "README").write_text("no image")
    images = indexed(tmp_path)
    assert names(images) == ["a.tif", "a/x/1.png", "b/2.JPG", "c.webp"]
    assert images.index.skipped.counts == {"with suffix '.txt'": 1, "without suffix": 1}
    assert images.index.skipped.examples["with suffix '.txt'"] == ["b/notes.txt"]
    assert images.index.label_n is None  # loose images


def test_a_cycle_of_links_ends_and_no_image_is_found_twice(tmp_path: Path) -> None:
    """A link to a folder is followed once; a link to nothing is counted."""
    noise_folder(tmp_path / "images" / "a", 3)
    (tmp_path / "images" / "a" / "up").symlink_to(tmp_path / "images")
    (tmp_path / "elsewhere").mkdir()
    noise_folder(tmp_path / "elsewhere", 2)
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    images = indexed(tmp_path / "images")
    assert names(images) == ["a/000.png", "a/001.png", "a/002.png", "linked/000.png", "linked/001.png"]
    assert list(images.index.skipped.counts.values()) == [1]


def test_a_folder_a_tar_a_parquet_file_and_lists_give_the_same_images_and_labels(tmp_path: Path) -> None:
    """Pixel by pixel. A list has the order of its lines."""
    folder = labelled_folder(tmp_path / "images")
    expected = pixels(indexed(folder))
    rows = [f"images/{file.relative_to(folder)},{file.parent.name}" for file in sorted(folder.rglob("*.png"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "list.txt").write_text("\n".join(["# comment", "", *(row.partition(",")[0] for row in rows)]))
    table = {"file_name": [row.partition(",")[0] for row in rows], "label": [row.partition(",")[2] for row in rows]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "names.parquet")
    as_tar(folder, tmp_path / "shard.tar")
    as_parquet(folder, tmp_path / "rows.parquet")
    for source in ("list.csv", "list.txt", "names.parquet", "shard.tar", "rows.parquet"):
        images = index_images(tmp_path / source, tmp_path / f"index-{source}")
        assert len(images) == 6, source
        assert all(np.array_equal(a, b) for a, b in zip(pixels(images), expected, strict=True)), source
        assert source == "list.txt" or labels(images) == ["a"] * 3 + ["b"] * 3, source


def test_a_folder_of_tars_is_read_file_by_file_and_says_where_each_image_is(tmp_path: Path) -> None:
    """Instances go through the files in the order of their names."""
    folder = labelled_folder(tmp_path / "images")
    (tmp_path / "shards").mkdir()
    for name in ("1.tar", "0.tar"):
        as_tar(folder, tmp_path / "shards" / name)
    images = indexed(tmp_path / "shards")
    assert len(images) == 12
    assert names(images)[0] == "0.tar/a-0.png"
    assert images.container_sizes() == (6, 6)


def test_a_tar_file_that_ends_too_early_gives_what_is_whole_in_it(tmp_path: Path) -> None:
    """And its index says what is not."""
    path = as_tar(labelled_folder(tmp_path / "images"), tmp_path / "shard.tar")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    images = index_images(path, tmp_path / "index")
    assert 2 <= len(images) < 6
    assert len(pixels(images)) == len(images)
    assert sum(images.index.skipped.counts.values()) == 1


def test_a_list_gives_nothing_from_outside_its_folder(tmp_path: Path) -> None:
    """Neither by .., nor by an absolute path, nor through a link."""
    noise_folder(tmp_path / "secret", 3)
    noise_folder(tmp_path / "mine", 2)
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "secret")
    lines = ["000.png", "../secret/000.png", f"{tmp_path}/secret/001.png", "link/002.png", f"{tmp_path}/mine/001.png", "000.png"]
    (tmp_path / "mine" / "list.txt").write_text("\n".join(lines))
    images = index_images(tmp_path / "mine" / "list.txt", tmp_path / "index")
    assert names(images) == ["000.png", "001.png"]
    assert images.index.skipped.counts == {f"that lead out of {tmp_path}/mine": 3, "named twice": 1}


def test_an_index_brought_up_to_date_keeps_every_images_id(tmp_path: Path) -> None:
    """New images come after the old ones; one that is gone keeps its place and is no instance any more."""
    before = indexed(noise_folder(tmp_path, 4))
    (tmp_path / "001.png").unlink()
    write_image(tmp_path / "000a.png", noise(9))
    after = write_index(list_source(str(tmp_path)), tmp_path / ".again", before.index)
    assert after.full_names() == ["000.png", "001.png", "002.png", "003.png", "000a.png"]
    images = index_images(tmp_path, tmp_path / ".run", index=str(tmp_path / ".again"))
    assert names(images) == ["000.png", "002.png", "003.png", "000a.png"]


def test_shards_that_are_added_leave_the_old_images_where_they_were(tmp_path: Path) -> None:
    """The new file's name sorts before the old one's, its images come behind."""
    folder = labelled_folder(tmp_path / "images")
    (tmp_path / "shards").mkdir()
    as_tar(folder, tmp_path / "shards" / "b.tar")
    before = indexed(tmp_path / "shards")
    as_tar(folder, tmp_path / "shards" / "a.tar")
    after = Images(write_index(list_source(str(tmp_path / "shards")), tmp_path / "index", before.index))
    assert names(after)[:6] == names(before)
    assert names(after)[6] == "a.tar/a-0.png"
    assert labels(after) == 2 * labels(before)
    assert all(np.array_equal(a, b) for a, b in zip(pixels(after), 2 * pixels(before), strict=True))


def test_a_run_takes_the_folders_own_index_only_while_nothing_has_changed(tmp_path: Path) -> None:
    """Else it lists the folder itself. Once it has an index, the run stays with it."""
    noise_folder(tmp_path / "images", 4)
    os.utime(tmp_path / "images", (10**9, 10**9))  # what has just changed may change again within the tick of a clock
    own = default_index(str(tmp_path / "images"))
    assert own is not None
    write_index(list_source(str(tmp_path / "images")), own)
    marked = json.loads((own / "index.json").read_text())
    (own / "index.json").write_text(json.dumps(marked | {"sha256": "its own"}))
    assert index_images(tmp_path / "images", tmp_path / "first").index.sha256 == "its own"
    write_image(tmp_path / "images" / "new.png", noise(7))
    assert len(index_images(tmp_path / "images", tmp_path / "second")) == 5
    assert len(index_images(tmp_path / "images", tmp_path / "first")) == 4


def test_a_limit_takes_evenly_spaced_images(tmp_path: Path) -> None:
    """Not the first ones: those would all be of the first sub-folder."""
    noise_folder(tmp_path, 10)
    assert names(indexed(tmp_path, 4)) == ["000.png", "002.png", "005.png", "007.png"]
    assert len(indexed(tmp_path, 10)) == len(indexed(tmp_path, 11)) == 10


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ({}, "missing", "(No such file or directory): give the absolute path of a folder or file that exists"),
        ({"a.png": b""}, "a.png", "is a file of no kind known here: name a folder, or a .txt, .csv, .tar or .parquet file"),
        ({}, "", "holds no image: name a folder, list, tar or parquet file with at least 2 images (.jpg, "),
        ({"a.doc": b"", "b.npy": b""}, "", "holds no image (2 other files: 1 with suffix '.doc', 1 with suffix '.npy')"),
        ({"a.doc": b"", "b.png": b""}, "", "holds one image (1 other files"),
        ({"a.tar.gz": b""}, "a.tar.gz", "is compressed, and no image in it can be read without all before it"),
        ({"a.parquet": b"no"}, "a.parquet", "is no whole parquet file"),
        ({"a.csv": b"id;size\n1;2\n"}, "a.csv", "has the columns id, size: none is called path"),
        ({"a.txt": b"\xff\xfe"}, "a.txt", "is no UTF-8 text"),
        ({"a.tar": b"", "b.parquet": b""}, "", "holds 1 tar and 1 parquet files: name a folder with one kind"),
    ],
)
def test_a_source_that_cannot_serve_is_refused_with_what_it_holds(tmp_path: Path, files: dict[str, bytes], path: str, message: str) -> None:
    """The message names the path, what was found there and the remedy."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadData) as refused:
        index_images(tmp_path / path, tmp_path / ".index")
    assert message in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert not (tmp_path / ".index").exists()


def test_images_of_one_name_are_told_apart_when_an_index_is_brought_up_to_date(tmp_path: Path) -> None:
    """A tar that holds a name twice, as `tar -r` makes them."""
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for i in range(3):
            tar.add(write_image(tmp_path / f"{i}.png", noise(i)), "same.png")
    before = index_images(tmp_path / "shard.tar", tmp_path / "before").index
    after = write_index(list_source(str(tmp_path / "shard.tar")), tmp_path / "after", before)
    assert after.gone_n is None
    assert after.offset_n.tolist() == before.offset_n.tolist()
    assert len(set(after.offset_n.tolist())) == 3


def test_an_index_of_other_data_is_not_taken_for_an_older_one(tmp_path: Path) -> None:
    """A folder whose images were put into tars keeps no id, and loses nothing."""
    folder = labelled_folder(tmp_path / "images")
    before = indexed(folder).index
    as_tar(folder, tmp_path / "0.tar")
    for file in folder.rglob("*.png"):
        file.unlink()
    (tmp_path / "0.tar").rename(folder / "0.tar")
    after = Images(write_index(list_source(str(folder)), tmp_path / "after", before))
    assert (len(after), after.index.gone_n) == (6, None)
    assert len(pixels(after)) == 6


def test_a_list_made_by_find_and_a_folder_with_a_link_to_itself_are_read(tmp_path: Path) -> None:
    """`find .` puts ./ before each path; such a link is no image, and no reason to refuse the others."""
    noise_folder(tmp_path / "images", 3)
    (tmp_path / "images" / "loop").symlink_to("loop")
    assert len(indexed(tmp_path / "images")) == 3
    (tmp_path / "images" / "list.txt").write_text("./000.png\n./001.png\n")
    assert names(index_images(tmp_path / "images" / "list.txt", tmp_path / "index")) == ["000.png", "001.png"]


def test_more_parquet_files_than_may_be_open_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are closed."""
    monkeypatch.setattr("trainer.data.parquets._MOST_OPEN", 2)
    folder = labelled_folder(tmp_path / "images")
    (tmp_path / "files").mkdir()
    for i in range(5):
        as_parquet(folder, tmp_path / "files" / f"{i}.parquet")
    images = indexed(tmp_path / "files")
    assert all(np.array_equal(a, b) for a, b in zip(pixels(images), 5 * pixels(indexed(folder)), strict=True))


def test_what_the_images_lie_on_may_be_away_for_a_while_when_they_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server's EIO passes; where it stays it is the storage's fault, not the images'."""
    monkeypatch.setattr(sources, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(sources, "POLL_SECONDS", 0.1)
    answers, list_folder = iter([OSError(errno.EIO, "I/O"), OSError(errno.ESTALE, "stale"), None]), sources.list_folder

    def hiccups(*arguments: Any) -> Listing:
        if error := next(answers):
            raise error
        return list_folder(*arguments)

    monkeypatch.setattr(sources, "list_folder", hiccups)
    assert len(list_source(str(noise_folder(tmp_path, 3))).names) == 3
    answers = itertools.repeat(OSError(errno.EIO, "I/O"))
    with pytest.raises(StorageError, match=f"cannot read '{tmp_path}'"):
        list_source(str(tmp_path))
