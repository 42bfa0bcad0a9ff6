"""The shards of a range of rows, by one of the processes that pack: images made smaller, JPEG, in a tar without times or owners."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import secrets
import signal
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from trainer.data.decode import Unreadable, decode
from trainer.data.index import Index, evenly_spaced
from trainer.data.reader import Reader
from trainer.data.tars import _LABEL_BYTES
from trainer.durable import sync
from trainer.errors import BadData

_SAMPLE = 64
_END = b"\0" * 1024
"""Two empty blocks end a tar."""


@dataclass(frozen=True)
class PackSettings:
    """How images are packed."""

    size: int = 256
    """Pixels of the shorter side; a smaller image keeps its own."""
    quality: int = 90
    """Of JPEG, 1 to 100."""
    shard_bytes: int = 256 * 2**20
    """Most bytes of a shard, unless one image alone has more."""
    labels: bool = True


def key(row: int) -> str:
    """The name of an image in its shard, without suffix."""
    return f"{row:09d}"


def packed_image(data: bytes, settings: PackSettings) -> bytes:
    """JPEG, upright, three channels; the bytes as they are where they are JPEG and small enough. Raises Unreadable."""
    pixels_HW3 = decode(data)
    height, width = pixels_HW3.shape[:2]
    if min(height, width) <= settings.size and data.startswith(b"\xff\xd8"):
        return data
    if min(height, width) > settings.size:
        scale = settings.size / min(height, width)
        height, width = max(settings.size, round(height * scale)), max(settings.size, round(width * scale))
        pixels_HW3 = cv2.resize(pixels_HW3, (width, height), interpolation=cv2.INTER_AREA)
    try:
        encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels_HW3, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, settings.quality])[1]
    except cv2.error:
        raise Unreadable("too long for JPEG", f"it is {width} x {height} pixels once packed, and JPEG ends at 65,500") from None
    return encoded.tobytes()


def check_labels(index: Index) -> None:
    """Raises BadData for a label that would not be read back from a tar as it is."""
    for label in index.label_names:
        data = label.encode(errors="replace")
        if not data or len(data) > _LABEL_BYTES or data.decode().strip() != label:
            raise BadData(
                f"the label {label!r} cannot be kept in a tar, as UTF-8 text of at most {_LABEL_BYTES} bytes without spaces around it: "
                "rename it, or pack without labels"
            )


def packed_bytes(index: Index, settings: PackSettings) -> int:
    """Mean bytes of an image in a shard, by some images from all over the index."""
    reader, sizes = Reader(index), []
    for row in evenly_spaced(len(index), _SAMPLE):
        try:
            sizes.append(len(_sample(index, row, packed_image(reader.read(row), settings), settings)))
        except Unreadable:
            continue
    return int(np.mean(sizes)) if sizes else settings.size**2 // 4


def _sample(index: Index, row: int, image: bytes, settings: PackSettings) -> bytes:
    """The tar members of an image."""
    members = _member(f"{key(row)}.jpg", image)
    if settings.labels and index.label_n is not None and index.label_n[row] >= 0:
        members += _member(f"{key(row)}.cls", index.label_names[int(index.label_n[row])].encode())
    return members


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # of nobody, at the beginning of time, mode 0644
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)


class _Shard:
    """A tar that is written under a temporary name."""

    def __init__(self, out: Path, name: str, begin: int) -> None:
        self.path, self._temporary = out / name, out / f".{name}.{secrets.token_hex(6)}.tmp"
        self.about: dict[str, Any] = {"name": name, "begin": begin, "end": begin, "images": 0, "bytes": 0}
        self._file, self._digest = self._temporary.open("xb"), hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.about["bytes"] += len(data)

    def close(self, end: int) -> dict[str, Any]:
        """Give it its name, once it is on the disk."""
        self.write(_END)
        self.write(b"\0" * (-self.about["bytes"] % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.path)
        return self.about | {"end": end, "sha256": self._digest.hexdigest()}

    def discard(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


class RangePacker:
    """Packs ranges of rows, one after another."""

    counter: Any
    """Images that are done, over all processes."""
    stop: Any
    """An event at which to give up."""

    def __init__(self, index: Index, out: Path, settings: PackSettings) -> None:
        self.index, self.out, self.settings = index, out, settings
        self.reader = Reader(index)
        self.unreadable: list[dict[str, Any]] = []

    def pack(self, number: int, begin: int, end: int) -> dict[str, Any]:
        """The record of rows begin .. end, once their shards are on the disk under their names. Raises OSError."""
        self.unreadable = []
        shards: list[dict[str, Any]] = []
        shard = _Shard(self.out, f"shard-{number:06d}.tar", begin)
        try:
            for row, members in self._samples(begin, end):
                if shard.about["images"] and shard.about["bytes"] + len(members) + tarfile.RECORDSIZE > self.settings.shard_bytes:
                    shards.append(shard.close(row))
                    shard = _Shard(self.out, f"shard-{number:06d}_{len(shards):02d}.tar", row)
                shard.write(members)
                shard.about["images"] += 1
            shards.append(shard.close(end))
        finally:
            shard.discard()
        sync(self.out)
        return {"range": number, "shards": shards, "unreadable": self.unreadable}

    def _samples(self, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
        for row in range(begin, end):
            if self.stop.is_set():
                raise RuntimeError("packing was stopped")
            if self.index.gone_n is not None and self.index.gone_n[row]:
                continue
            try:
                yield row, _sample(self.index, row, packed_image(self.reader.read(row), self.settings), self.settings)
            except Unreadable as error:
                name = self.index.full_name(row).encode(errors="backslashreplace").decode()
                self.unreadable.append({"id": row, "image": name, "cause": error.cause, "message": str(error)})
            with self.counter.get_lock():
                self.counter.value += 1


_packer: RangePacker | None = None


def start_worker(packer: RangePacker, counter: Any, stop: Any) -> None:
    """Of this process, which ends with its parent, however that ends: it would wait for tasks for ever."""
    global _packer
    cv2.setNumThreads(0)  # its siblings have the other cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _packer = packer
    _packer.counter, _packer.stop = counter, stop


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def pack_range(number: int, begin: int, end: int) -> dict[str, Any]:
    """In a worker process."""
    assert _packer is not None
    return _packer.pack(number, begin, end)
