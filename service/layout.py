"""Where a run keeps its files, below the worker's runs directory. The trainer and the worker meet here and nowhere else.

RUN_ID/
  spec.json                      the specification, as stored
  fence                          number of the attempt that may write here; an older attempt's ranks stop when they see it
  pins.json                      steps of checkpoints that are never removed
  attempts/0001/
    events.jsonl                 the event spool, written by rank 0
    stop                         exists once the job is to write a checkpoint and end
    beats/rank-0 ...             each rank's last step and phase, to tell a slow job from a stuck one
    launcher-0.log               standard output and error of the launcher on node 0, ...
    rank-0.log ...               of each rank
  checkpoints/step-000000120/    whole or absent; see trainer/checkpoint.py
  export/                        the backbone for timm; see trainer/export.py
  index/images, labelled, queries   which images the run is of; see trainer/data/index.py
  quarantine.jsonl               images that could not be read; see trainer/data/quarantine.py
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

BEAT_BYTES = 128


@dataclass(frozen=True)
class AttemptDir:
    path: Path

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def stop(self) -> Path:
        return self.path / "stop"

    def launcher_log(self, node: int = 0) -> Path:
        return self.path / f"launcher-{node}.log"

    def rank_log(self, rank: int) -> Path:
        return self.path / f"rank-{rank}.log"

    def beat(self, rank: int) -> Path:
        return self.path / "beats" / f"rank-{rank}"


@dataclass(frozen=True)
class RunDir:
    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def fence(self) -> Path:
        return self.path / "fence"

    @property
    def pins(self) -> Path:
        return self.path / "pins.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def index(self) -> Path:
        return self.path / "index"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine.jsonl"

    def attempt(self, number: int) -> AttemptDir:
        return AttemptDir(self.path / "attempts" / f"{number:04d}")

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:09d}"

    def newest_attempt(self) -> int:
        """The number in the fence; 0 where there is none yet."""
        try:
            return int(self.fence.read_text())
        except (FileNotFoundError, ValueError):
            return 0


@dataclass(frozen=True)
class Beat:
    """A rank's sign of life, one line of JSON that the rank overwrites in place at each step or batch of another phase."""

    step: int
    phase: str
    count: int
    """Grows with every piece of work, also in phases without steps."""
    time: float
    """Unix seconds, the rank's clock."""


def write_beat(descriptor: int, beat: Beat) -> None:
    """Over the last one. Fixed width, one write: a reader on the same machine sees one or the other."""
    line = json.dumps(asdict(beat)).ljust(BEAT_BYTES - 1) + "\n"
    os.pwrite(descriptor, line.encode(), 0)


def read_beat(path: Path) -> Beat | None:
    """None before the rank's first."""
    try:
        return Beat(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file whole or not at all: a temporary name, fsync, rename."""
    data = content.encode() if isinstance(content, str) else content
    # Nodes may share the directory, and process ids are only unique on one.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
