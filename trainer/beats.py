"""This rank's sign of life (service.layout.Beat): where a job is stuck, the worker sees which rank stopped where."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from service.layout import Beat, write_beat

MIN_SECONDS = 0.1
"""Between two writes of one phase; steps of a small network take a millisecond."""


class Beats:
    """Overwrites one line of the rank's file. Raises OSError where the directory cannot be written, but only when made."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._written_at = -MIN_SECONDS
        self._step, self.phase, self._count = 0, "starting", 0
        self.enter("starting")

    def enter(self, phase: str) -> None:
        """A phase begins: written in any case."""
        self.phase, self._written_at = phase, -MIN_SECONDS
        self.beat()

    def beat(self, step: int | None = None) -> None:
        """One piece of work is done; `step` where it is a training step, counting those done."""
        self._step = self._step if step is None else step
        self._count += 1
        now = time.monotonic()
        if now - self._written_at < MIN_SECONDS:
            return
        self._written_at = now
        with contextlib.suppress(OSError):  # a full disk is for the checkpoint to report
            write_beat(self._descriptor, Beat(self._step, self.phase, self._count, time.time()))
