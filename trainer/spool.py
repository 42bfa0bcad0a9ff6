"""The event spool: one JSON object a line (service/events.py), appended by the job and shipped by the worker."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from service.events import job_event


class EventSpool:
    """Rank 0 appends; a rank that fails appends why. The lock keeps `seq` without gaps or doubles when both write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, kind: str, **fields: Any) -> None:
        """Append one event, whole: a reader takes a line only with its line feed. Values are checked against the schema."""
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            event = job_event.validate_python({"kind": kind, "seq": _last_seq(file) + 1, "time": time.time(), **fields})
            file.write(event.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _last_seq(file: Any) -> int:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return 0
    reach = 4096
    while True:
        file.seek(max(0, size - reach))
        lines = file.read().rstrip(b"\n").split(b"\n")
        if len(lines) > 1 or reach >= size:
            return int(json.loads(lines[-1])["seq"])
        reach *= 4


class NullSpool:
    """What the other ranks hold: they report nothing."""

    def append(self, kind: str, **fields: Any) -> None:
        pass
