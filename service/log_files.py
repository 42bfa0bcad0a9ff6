"""The runs' logs on the API's disk: LOGS/RUN_ID/ATTEMPT/NAME. Functions block: call them from a thread.

A log is cut into segments of `segment_bytes`: NAME is the first, NAME.1 the second, and so on. Of a long one the first and the newest two
stay, so that one that never stops talking neither fills the disk nor hides its last words. Offsets count what was ever sent.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from pathlib import Path

from service.errors import DiskFull, LogGap
from service.protocol import LOG_NAME, LogFile

NUM_SEGMENTS = 3
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LogFiles:
    """`run_id` must be that of a stored run, which is what makes it a safe part of a path."""

    def __init__(self, root: Path, max_log_bytes: int = 64 << 20) -> None:
        self._root, self._segment_bytes = root, max_log_bytes // NUM_SEGMENTS

    def append(self, run_id: str, attempt: int, name: str, offset: int, piece: bytes) -> int:
        """Store `piece`, which starts at byte `offset` of the log. What is stored already is skipped. Returns the size then.

        Raises LogGap where bytes between are missing, DiskFull where not all of the piece finds room: send it again later.
        """
        path = self._path(run_id, attempt, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # a sender that gave up waiting may send again while its first piece is written
                size = _size(path, self._segment_bytes)
                if offset > size:
                    raise LogGap(name, size, offset)
                left = memoryview(piece)[size - offset :]
                while left:
                    number, begun = divmod(size, self._segment_bytes)
                    part = left[: self._segment_bytes - begun]
                    if begun == 0 and number >= NUM_SEGMENTS:
                        _segment(path, number - NUM_SEGMENTS + 1).unlink(missing_ok=True)
                    _write(_segment(path, number), part)
                    size, left = size + len(part), left[len(part) :]
                return size
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise DiskFull(
                f"log {name} of run {run_id} finds no room in {self._root} ({error.strerror}): free some; nothing is lost"
            ) from None

    def read(self, run_id: str, attempt: int, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        """At most `limit` bytes from `offset`, and the offset after them; nothing where the log ends, or does not exist yet.

        Of a middle that is not kept: nothing, and the offset where the log goes on.
        """
        path = self._path(run_id, attempt, name)
        number, begun = divmod(offset, self._segment_bytes)
        try:
            with _segment(path, number).open("rb") as file:
                file.seek(begun)
                piece = file.read(min(limit, self._segment_bytes - begun))
                return piece, offset + len(piece)
        except FileNotFoundError:
            later = [kept for kept in _numbers(path) if kept > number]
            return b"", min(later) * self._segment_bytes if later else offset

    def index(self, run_id: str) -> list[LogFile]:
        """All logs of a run, by attempt and name."""
        paths = sorted((self._root / run_id).glob("*/*.log"))
        return [LogFile(attempt=int(path.parent.name), name=path.name, size=_size(path, self._segment_bytes)) for path in paths]

    def _path(self, run_id: str, attempt: int, name: str) -> Path:
        if attempt < 1 or not re.fullmatch(LOG_NAME, name):
            raise ValueError(f"log {name!r} of attempt {attempt}: no such log")
        return self._root / run_id / f"{attempt:04d}" / name


def _segment(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path


def _numbers(path: Path) -> list[int]:
    """Of the segments after the first that are there."""
    return [int(other.suffix[1:]) for other in path.parent.glob(f"{path.name}.*")]


def _size(path: Path, segment_bytes: int) -> int:
    first = path.stat().st_size
    if first < segment_bytes:
        return first
    newest = max(_numbers(path), default=0)
    return newest * segment_bytes + _segment(path, newest).stat().st_size


def _write(path: Path, part: memoryview) -> None:
    """Unbuffered, so that what did find room on a full disk is known to have."""
    with path.open("ab", buffering=0) as file:
        while part:
            part = part[os.write(file.fileno(), part) :]
