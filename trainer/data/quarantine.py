"""The list of images that a run could not use, in its directory, for the person who mends or removes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from service.layout import write_whole
from trainer.data.index import Index
from trainer.data.tasks import Bad

MOST_LISTED = 10_000
"""Further ones are counted and not listed."""


class Quarantine:
    """One JSON object a line: name, cause, message; over all attempts of the run. One rank keeps it."""

    def __init__(self, path: Path, index: Index) -> None:
        self.path, self._index = path, index
        self._entries: dict[int, dict[str, object]] = {}
        self._of_attempt: set[int] = set()
        if path.exists():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self._entries[entry["id"]] = entry

    def add(self, found: Iterable[Bad]) -> list[str]:
        """Names of those that were not listed yet."""
        new = []
        for bad in found:
            if bad.row in self._entries or len(self._entries) >= MOST_LISTED:
                continue
            name = self._index.full_name(bad.row)
            self._entries[bad.row] = {"id": bad.row, "name": name, "cause": bad.cause, "message": bad.message}
            self._of_attempt.add(bad.row)
            new.append(name)
        if new:
            self._write()
        return new

    def forget(self, causes: Collection[str]) -> None:
        """Take off the list what this attempt put there for one of these causes."""
        forgotten = {row for row in self._of_attempt if self._entries[row]["cause"] in causes}
        self._of_attempt -= forgotten
        if forgotten:
            self._entries = {row: entry for row, entry in self._entries.items() if row not in forgotten}
            self._write()

    def summary(self) -> str:
        """How many by cause, e.g. "3 truncated, 1 missing"."""
        return by_cause(str(entry["cause"]) for entry in self._entries.values())

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, "".join(f"{json.dumps(entry)}\n" for entry in self._entries.values()))


def by_cause(causes: Iterable[str]) -> str:
    """How many of each, e.g. "3 truncated, 1 missing"."""
    return ", ".join(f"{count} {cause}" for cause, count in Counter(causes).most_common())
