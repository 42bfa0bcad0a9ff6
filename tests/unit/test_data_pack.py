"""Packing images into tar shards."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import pytest
from PIL import Image

from tests.images import noise, write_image
from trainer.data.decode import decode
from trainer.data.images import Images, default_index, index_images
from trainer.data.index import Index
from trainer.data.pack import Packed, pack
from trainer.data.pack_shards import PackSettings, RangePacker, packed_image
from trainer.data.reader import Reader
from trainer.errors import BadData, DiskError

SMALL = PackSettings(size=32, shard_bytes=40_000)
WRITTEN = ("pack.json", "names.txt", "unreadable.jsonl", "SHA256SUMS", ".packed.jsonl")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images of two labels, one of them damaged, one empty."""
    root = tmp_path_factory.mktemp("source")
    for i in range(62):
        write_image(root / ("dog \u00e9t\u00e9" if i % 3 else "cat") / f"{i:03d}.png", noise(i, 40 + i, 60))
    (root / "cat" / "0.jpg").write_bytes(b"\xff\xd8 and no more")
    (root / "cat" / "1.jpg").touch()
    return root


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By one worker, without an interruption."""
    out = tmp_path_factory.mktemp("packed") / "out"
    pack(str(source), out, SMALL, 1)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (*out.glob("shard-*"), *(out / name for name in WRITTEN))}


def opened(out: Path) -> Index:
    directory = default_index(str(out))
    assert directory is not None
    return Index(directory)


def test_the_packed_folder_holds_the_source_s_images_in_its_order_with_their_labels(source: Path, packed: Path, tmp_path: Path) -> None:
    """Through the index that training reads: names by id, label names, and pixels as OpenCV makes them smaller."""
    before, after = index_images(source, tmp_path / "index").index, opened(packed)
    kept = [row for row in range(len(before)) if before.name(row) not in ("cat/0.jpg", "cat/1.jpg")]
    assert [after.name(i) for i in range(len(after))] == [f"{row:09d}.jpg" for row in kept]
    assert after.label_names == before.label_names == ["cat", "dog \u00e9t\u00e9"]
    assert before.label_n is not None
    assert after.label_n is not None
    assert after.label_n.tolist() == before.label_n[kept].tolist()
    reader = Reader(after)
    for i, row in enumerate(kept):
        pixels = cv2.imread(str(source / before.name(row)))
        height, width = pixels.shape[:2]
        scale = 32 / min(height, width)
        small = cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
        assert reader.read(i) == cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    names = dict(line.split("\t") for line in (packed / "names.txt").read_text().splitlines())
    assert names == {f"{row:09d}": before.name(row) for row in kept}


def test_unreadable_images_are_left_out_counted_and_listed(packed: Path) -> None:
    """By cause in pack.json; each with its id and name in unreadable.jsonl."""
    assert json.loads((packed / "pack.json").read_text())["unreadable"] == {"empty": 1, "truncated": 1}
    listed = [json.loads(line) for line in (packed / "unreadable.jsonl").read_text().splitlines()]
    assert [(one["id"], one["image"], one["cause"]) for one in listed] == [(0, "cat/0.jpg", "truncated"), (22, "cat/1.jpg", "empty")]


def test_checksums_row_ranges_and_sizes_are_those_of_the_shards(packed: Path) -> None:
    """`sha256sum -c` finds them right; the rows of the shards are those of the index, without a gap; none is too large."""
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=packed, capture_output=True, text=True, check=True)  # noqa: S607
    about = json.loads((packed / "pack.json").read_text())
    assert len(checked.stdout.splitlines()) == len(about["shards"]) > 3
    row = 0
    for shard in about["shards"]:
        assert shard["begin"] == row
        row = shard["end"]
        with tarfile.open(packed / shard["name"]) as tar:
            members = tar.getmembers()
        assert all(shard["begin"] <= int(member.name.partition(".")[0]) < row for member in members)
        assert {(member.mtime, member.uid, member.gid, member.mode, member.uname) for member in members} == {(0, 0, 0, 0o644, "")}
        assert shard["bytes"] == (packed / shard["name"]).stat().st_size <= SMALL.shard_bytes
    assert row == about["rows"] == 64


def test_the_bytes_do_not_depend_on_the_number_of_workers(source: Path, packed: Path, tmp_path: Path) -> None:
    """Two workers write what one does, file by file."""
    pack(str(source), tmp_path / "out", SMALL, 2)
    assert contents(tmp_path / "out") == contents(packed)


SLOW = """
import sys, time
from pathlib import Path
from trainer.data import pack_shards
from trainer.data.pack import pack

quick = pack_shards.packed_image
pack_shards.packed_image = lambda *arguments: time.sleep(0.015) or quick(*arguments)  # in the workers as well

if __name__ == "__main__":
    source, out, moment = sys.argv[1:]
    stops = lambda done, total: moment == "before the record" and list(Path(out).glob("shard-*")) and time.sleep(60)
    pack(source, Path(out), pack_shards.PackSettings(size=32, shard_bytes=40_000), 1, stops)
"""


@pytest.mark.parametrize("moment", ["before the record", "in the third shard"])
def test_a_killed_pack_goes_on_after_its_last_whole_shard(moment: str, source: Path, packed: Path, tmp_path: Path) -> None:
    """kill -9 in mid-run ends the workers as well; the resumed result is byte for byte that of an uninterrupted one."""
    out, script = tmp_path / "out", tmp_path / "slow.py"
    script.write_text(SLOW)
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, script, source, out, moment], start_new_session=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}
    )
    journal, deadline = out / ".packed.jsonl", time.monotonic() + 30
    num_records = 0 if moment == "before the record" else 2
    while not list(out.glob("shard-*")) or len(journal.read_text().splitlines()) < num_records:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    while _in_session(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    num_records = len(journal.read_text().splitlines())
    assert (num_records > 0) == (moment != "before the record")
    assert not (out / "SHA256SUMS").exists()
    if num_records:
        assert list(out.glob(".shard-*.tmp"))
    with journal.open("a") as file:
        file.write('{"range": 5, "shards": [], "unrea')  # a line that was cut off
    assert pack(str(source), out, SMALL, 2).num_resumed == num_records * _about(out)["rows_per_shard"]
    assert contents(out) == contents(packed)
    assert not list(out.glob(".*.tmp"))


def _in_session(session: int) -> list[int]:
    """Processes that live."""
    alive = []
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if os.getsid(pid) == session and state != "Z":
                alive.append(pid)
        except (ProcessLookupError, FileNotFoundError):
            continue
    return alive


def test_a_half_written_temporary_shard_is_never_taken(source: Path, packed: Path, tmp_path: Path) -> None:
    """It is none of the images while it lies there, and gone after the next call; a shard that was removed is packed again."""
    out = tmp_path / "out"
    pack(str(source), out, SMALL, 1)
    half = out / ".shard-000000.tar.12ab.tmp"
    half.write_bytes((out / "shard-000000.tar").read_bytes()[:20_000])
    assert index_images(out, tmp_path / "index").index.containers == [shard["name"] for shard in _about(out)["shards"]]
    (out / "shard-000000.tar").unlink()
    assert pack(str(source), out, SMALL, 1).num_resumed == 64 - _about(out)["rows_per_shard"]
    assert not half.exists()
    assert contents(out) == contents(packed)


def _about(out: Path) -> dict:
    return json.loads((out / "pack.json").read_text())


def test_a_range_that_does_not_fit_has_a_second_shard_in_the_order_of_names(source: Path, tmp_path: Path) -> None:
    """Sorted by name, as they are indexed, the shards are in the order of their rows."""
    index = index_images(source, tmp_path / "index").index
    packer = RangePacker(index, tmp_path, PackSettings(size=32, shard_bytes=30_000))
    packer.counter, packer.stop = _Counter(), _Never()
    first, second = packer.pack(0, 0, 40), packer.pack(1, 40, 64)
    names = [shard["name"] for record in (first, second) for shard in record["shards"]]
    assert names[:2] == ["shard-000000.tar", "shard-000000_01.tar"]
    assert names == sorted(names) == sorted(path.name for path in tmp_path.glob("*.tar"))
    begins = [shard["begin"] for record in (first, second) for shard in record["shards"]]
    assert begins == sorted(begins)
    assert all((tmp_path / name).stat().st_size <= 30_000 for name in names)


class _Counter:
    value = 0

    def get_lock(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class _Never:
    def is_set(self) -> bool:
        return False


def test_small_jpegs_keep_their_bytes_and_other_images_are_never_enlarged(tmp_path: Path) -> None:
    """A JPEG of exactly the size as well; a small PNG becomes a JPEG of its own size."""
    settings = PackSettings(size=64)
    for width, height in ((64, 90), (50, 40)):
        data = cv2.imencode(".jpg", noise(0, height, width))[1].tobytes()
        assert packed_image(data, settings) == data
        data = cv2.imencode(".png", noise(0, height, width))[1].tobytes()
        assert decode(packed_image(data, settings)).shape == (height, width, 3)
    larger = cv2.imencode(".jpg", noise(0, 66, 200))[1].tobytes()
    assert decode(packed_image(larger, settings)).shape == (64, 194, 3)


def test_a_photograph_taken_sideways_is_packed_upright(tmp_path: Path) -> None:
    """Re-encoded its pixels are turned; where it keeps its bytes it keeps its mark, and is turned when it is read."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(0, 40, 80)).save(tmp_path / "sideways.jpg", exif=exif)
    data = (tmp_path / "sideways.jpg").read_bytes()
    assert decode(packed_image(data, PackSettings(size=20))).shape == (40, 20, 3)
    assert decode(packed_image(data, PackSettings(size=64))).shape == (80, 40, 3)


def test_other_settings_other_images_and_other_folders_are_refused_with_the_remedy(source: Path, packed: Path, tmp_path: Path) -> None:
    """Nothing is mixed: not two sizes, not two lists of images, nor a pack with other files."""
    with pytest.raises(BadData, match=r"size was 32 and is 48\): give another folder, or remove this one"):
        pack(str(source), packed, PackSettings(size=48, shard_bytes=40_000), 1)
    other = tmp_path / "other"
    for i in range(3):
        write_image(other / f"{i}.png", noise(i))
    with pytest.raises(BadData, match="source_index_sha256 was"):
        pack(str(other), packed, SMALL, 1)
    with pytest.raises(BadData, match="is not empty, and no pack of images"):
        pack(str(source), other, SMALL, 1)
    with pytest.raises(BadData, match="is within the images"):
        pack(str(source), source / "cat" / "packed", SMALL, 1)
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="cannot be written"):
        pack(str(source), tmp_path / "file" / "out", SMALL, 1)
    assert not (source / "cat" / "packed").exists()


def test_a_label_that_a_tar_cannot_keep_is_refused_unless_labels_are_left_out(tmp_path: Path) -> None:
    """What is read back is text of at most 64 bytes."""
    source = tmp_path / "source"
    for i in range(4):
        write_image(source / ("a" * (65 if i % 2 else 3)) / f"{i}.png", noise(i))
    with pytest.raises(BadData, match="rename it, or pack without labels"):
        pack(str(source), tmp_path / "out", PackSettings(), 1)
    assert pack(str(source), tmp_path / "out", PackSettings(labels=False), 1) == Packed(4, 10_240, 1, {}, 0)
    assert opened(tmp_path / "out").label_n is None
    assert len(Images(opened(tmp_path / "out"))) == 4
