"""Where a run keeps its files, below the worker's runs directory. The trainer and the worker meet here and nowhere else.

RUN_ID/
  spec.json                      the specification, as stored
  attempts/0001/
    events.jsonl                 the event spool, written by rank 0
    launcher.log, rank-0.log ... standard output and error
  checkpoints/step-000000120/    whole or absent; see trainer/checkpoint.py
  export/                        the backbone for timm; see trainer/export.py
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AttemptDir:
    path: Path

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def launcher_log(self) -> Path:
        return self.path / "launcher.log"

    def rank_log(self, rank: int) -> Path:
        return self.path / f"rank-{rank}.log"


@dataclass(frozen=True)
class RunDir:
    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    def attempt(self, number: int) -> AttemptDir:
        return AttemptDir(self.path / "attempts" / f"{number:04d}")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file whole or not at all: a temporary name, fsync, rename."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
