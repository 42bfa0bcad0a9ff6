"""Reading ahead, slow and broken disks included."""

from __future__ import annotations

import errno
import tarfile
import threading
import time
from pathlib import Path

import pytest

from tests.images import indexed, noise_folder
from trainer.data.decode import Unreadable
from trainer.data.images import index_images
from trainer.data.reader import Reader
from trainer.data.reading import PIECE, PIECES_AHEAD, ReadAhead


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(indexed(noise_folder(tmp_path, 100)).index)


def test_bytes_come_in_the_order_asked_for(reader: Reader, tmp_path: Path) -> None:
    """Of more images than are asked for at a time, and some twice."""
    rows = [*range(99, -1, -1), 3, 3]
    assert len(rows) > PIECE * PIECES_AHEAD
    assert list(ReadAhead(reader, 10).read(rows)) == [(tmp_path / f"{row:03d}.png").read_bytes() for row in rows]


def test_a_read_that_hangs_is_a_bad_image_and_the_others_come(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are threads."""
    hung, read = threading.Event(), Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, row: hung.wait(30) and b"" if row % 10 == 0 else read(self, row))
    begun = time.monotonic()
    found = list(ReadAhead(reader, 0.5, num_threads=2).read(range(100)))
    assert time.monotonic() - begun < 20
    hung.set()
    assert [row for row, data in enumerate(found) if isinstance(data, Unreadable)] == list(range(0, 100, 10))
    assert {data.cause for data in found if isinstance(data, Unreadable)} == {"timeout"}


def test_slow_reads_overlap(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 reads of 50 ms in four threads take nearer to 0.5 than to 2 seconds."""
    at_once: list[int] = []
    running = 0
    lock = threading.Lock()

    def slow(self: Reader, row: int) -> bytes:
        nonlocal running
        with lock:
            running += 1
            at_once.append(running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return b"x"

    monkeypatch.setattr(Reader, "read", slow)
    assert list(ReadAhead(reader, 10, num_threads=4).read(range(40))) == [b"x"] * 40
    assert max(at_once) == 4


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.EIO, "Input/output error"), "read error"),
        (FileNotFoundError(errno.ENOENT, "gone"), "missing"),
        (PermissionError(errno.EACCES, "no"), "forbidden"),
        (RuntimeError("of a library"), "read error"),
    ],
)
def test_what_the_disk_says_becomes_a_cause(reader: Reader, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str) -> None:
    """And costs that image alone."""
    read = reader.files.read

    def fail(name: str, begin: int = 0, length: int | None = None) -> bytes:
        if name == "002.png":
            raise error
        return read(name, begin, length)

    monkeypatch.setattr(reader.files, "read", fail)
    found = list(ReadAhead(reader, 10).read(range(5)))
    assert [getattr(data, "cause", None) for data in found] == [None, None, cause, None, None]


def test_an_error_that_passes_costs_no_image(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two failures are made up for, a third is not; after three images in vain no time is spent on others until one can be read."""
    read, failures = reader.files.read, {"001.png": 2, "002.png": 3, **{f"{row:03d}.png": 99 for row in range(10, 20)}}
    tries: list[str] = []

    def fail(name: str, begin: int = 0, length: int | None = None) -> bytes:
        tries.append(name)
        if tries.count(name) <= failures.get(name, 0):
            raise OSError(errno.EIO, "Input/output error")
        return read(name, begin, length)

    monkeypatch.setattr(reader.files, "read", fail)
    monkeypatch.setattr("trainer.data.reader.PAUSES", (0.01, 0.01))
    found = [getattr(data, "cause", data) for data in ReadAhead(reader, 10, num_threads=1).read([1, 2, *range(10, 22), 10])]
    sound = [(tmp_path / f"{row:03d}.png").read_bytes() for row in (1, 20, 21)]
    assert found == [sound[0], "read error", *["read error"] * 10, *sound[1:], "read error"]
    assert [tries.count(f"{row:03d}.png") for row in (1, 2, 10, 11, 12, 13, 19, 20)] == [3, 3, 6, 3, 1, 1, 1, 1]


def test_a_tar_that_is_read_short_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its index says how many bytes an image has."""
    noise_folder(tmp_path / "images", 2)
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(tmp_path / "images", "images")
    reader = Reader(index_images(tmp_path / "images.tar", tmp_path / "index").index)
    read, lengths = reader.files.read, [100, 300, None]
    monkeypatch.setattr(reader.files, "read", lambda name, begin, length: read(name, begin, lengths.pop(0) or length))
    monkeypatch.setattr("trainer.data.reader.PAUSES", (0.01, 0.01))
    assert reader.read(1) == (tmp_path / "images/001.png").read_bytes()


def test_short_reads_are_read_to_the_end(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may give less than it was asked for, though there is more."""
    import io

    class Short(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            return super().read(min(size, 100) if size >= 0 else 100)

    monkeypatch.setattr("trainer.data.files.open", lambda path, mode, buffering: Short(path), raising=False)
    assert reader.read(7) == (tmp_path / "007.png").read_bytes()
    assert reader.files.read("007.png", 50, 300) == (tmp_path / "007.png").read_bytes()[50:350]
