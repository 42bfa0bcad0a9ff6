"""The event spool: one JSON object a line (service/events.py), appended by the job and shipped by the worker."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from service.events import job_event


class EventSpool:
    """Rank 0 appends; a rank that fails appends why. The lock keeps `seq` without gaps or doubles when both write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, kind: str, **fields: Any) -> None:
        """Append one event, whole: a reader takes a line only with its line feed. Values are checked against the schema."""
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            event = job_event.validate_python(
                {"kind": kind, "seq": _next_seq(file), "time": time.time(), **{name: _clean(value) for name, value in fields.items()}}
            )
            file.write(event.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _clean(value: Any) -> Any:
    """A text that JSON can hold: names of files need not be UTF-8."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _next_seq(file: BinaryIO) -> int:
    """The number after the last whole line's. What a killed writer left of a line is cut off."""
    size = file.seek(0, os.SEEK_END)
    reach = 4096
    while True:
        start = max(0, size - reach)
        file.seek(start)
        lines = file.read().split(b"\n")
        torn = lines.pop()  # empty after a whole line
        if start == 0 or len(lines) > 1:  # the first of them may have begun before `start`
            if torn:
                file.truncate(size - len(torn))
            return int(json.loads(lines[-1])["seq"]) + 1 if lines else 1
        reach *= 4


class NullSpool:
    """What the other ranks hold: they report nothing."""

    def append(self, kind: str, **fields: Any) -> None:
        pass
