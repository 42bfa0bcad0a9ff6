"""The runs' logs on the API's disk: LOGS/RUN_ID/ATTEMPT/NAME. Functions block: call them from a thread."""

from __future__ import annotations

import fcntl
import re
from pathlib import Path

from service.errors import LogGap
from service.protocol import LOG_NAME, LogFile


class LogFiles:
    """`run_id` must be that of a stored run, which is what makes it a safe part of a path."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def append(self, run_id: str, attempt: int, name: str, offset: int, piece: bytes) -> int:
        """Store `piece`, which starts at byte `offset` of the log. What is stored already is skipped. Returns the size then.

        Raises LogGap where bytes between are missing.
        """
        path = self._path(run_id, attempt, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a sender that gave up waiting may send again while its first piece is written
            size = file.seek(0, 2)
            if offset > size:
                raise LogGap(name, size, offset)
            file.write(piece[size - offset :])
            return file.tell()

    def read(self, run_id: str, attempt: int, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        """At most `limit` bytes from `offset`, and the offset after them; nothing where the log ends, or does not exist yet."""
        try:
            with self._path(run_id, attempt, name).open("rb") as file:
                file.seek(min(offset, file.seek(0, 2)))  # file systems refuse an offset beyond their largest file
                piece = file.read(limit)
        except FileNotFoundError:
            piece = b""
        return piece, offset + len(piece)

    def index(self, run_id: str) -> list[LogFile]:
        """All logs of a run, by attempt and name."""
        paths = sorted((self._root / run_id).glob("*/*.log"))
        return [LogFile(attempt=int(path.parent.name), name=path.name, size=path.stat().st_size) for path in paths]

    def _path(self, run_id: str, attempt: int, name: str) -> Path:
        if attempt < 1 or not re.fullmatch(LOG_NAME, name):
            raise ValueError(f"log {name!r} of attempt {attempt}: no such log")
        return self._root / run_id / f"{attempt:04d}" / name
