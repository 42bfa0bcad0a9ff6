"""A file system with faults, for fsspec: the local one, in which the beginning of a file's name says what befalls its reading."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any, ClassVar

from fsspec.implementations.local import LocalFileSystem


class FaultyFiles(LocalFileSystem):  # type: ignore[misc]
    """`faulty:///absolute/path`. FLAKY fails once in each process, BROKEN always; HUNG takes longer than any test; SHORT ends early."""

    protocol = ("faulty",)
    tried: ClassVar[set[str]] = set()

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(LocalFileSystem._strip_protocol(str(path).removeprefix("faulty://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        file = Path(self._strip_protocol(path))
        kind = file.name.partition("-")[0]
        is_first = path not in self.tried
        self.tried.add(path)
        if kind == "slow":
            time.sleep(0.02)
        if kind == "broken" or (kind == "flaky" and is_first):
            raise OSError(errno.EIO, "Input/output error")
        data = file.read_bytes()[start:end]
        if kind == "hung":
            time.sleep(600)
        return data[: len(data) // 2] if kind == "short" else data


def install(site: Path) -> str:
    """Write what makes FaultyFiles known to every process that has `site` on its path; returns a PYTHONPATH with it."""
    package = site / "faulty_files-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-files\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[fsspec.specs]\nfaulty = tests.faulty_files.FaultyFiles\n")
    return f"{site}:{Path(__file__).parent.parent}"
